"""Ranks sample the prompts of a batch by turns, and one that runs dry takes the next of all.

A rank begins with what it holds at once. Its engine may take the next prompt as soon as it has
room, or it is called again when it has finished a batch. The counter is the same for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from rlkit.ranks import Ranks
from rlkit.training.exchange import Sampled, decode, encode
from rlkit.training.scoring import ScoringNumbers
from rlkit.training.together import Together
from rlkit.types import (
    Generator,
    Group,
    Prompt,
    PromptRequest,
    RefillingGenerator,
    Rollout,
    SamplingConfig,
)


class Portion(NamedTuple):
    """The prompts that a rank takes together; all ranks must say the same."""

    at_once: int = 0
    """Prompts that it begins with; 0 = its whole share, and no more."""
    refills: bool = False
    """Whether its one call takes further prompts on the way; else further calls do."""
    together: bool = False
    """Whether all ranks make one call at once, also for no prompt."""


class Sample(Protocol):
    """A function that samples and scores some of a list of prompts is called like this."""

    def __call__(self, places: Iterable[int]) -> Sampled:
        """Return the groups of the prompts at `places`, in that order.

        An iterator gives the next place when there is room for it. It must not be asked before.
        """
        ...


def portion_of(generator: Generator, num_samples: int, *, at_once: int) -> Portion:
    """Return what `generator` takes together of prompts with `num_samples` samples each.

    `at_once` is for generators that cannot refill: prompts of one call, 0 = the whole share.
    """
    if isinstance(generator, Together):
        return Portion(together=True)
    if isinstance(generator, RefillingGenerator):
        held = generator.prompts_at_once(num_samples)
        return Portion(held, refills=held > 0)
    return Portion(at_once)


def ask(
    generator: Generator,
    places: Iterable[int],
    request: Callable[[int], PromptRequest],
    *,
    num_samples: int,
    sampling: SamplingConfig,
) -> list[list[Rollout]]:
    """Return the rollouts of the prompts at `places`, in that order.

    Args:
        generator: It must be able to refill where `places` is an iterator.
        places: The places of prompts, as `Sample` gets them.
        request: It turns a place into what is sampled there.
        num_samples: The samples of each prompt, >= 1.
        sampling: The distribution to sample from.

    Returns:
        The rollouts, [prompt][sample].
    """
    if isinstance(places, Iterator):
        assert isinstance(generator, RefillingGenerator)
        wanted = map(request, places)
        return generator.generate_from(wanted, num_samples=num_samples, sampling=sampling)
    requests = [request(place) for place in places]
    return generator.generate(
        [each.prompt for each in requests],
        num_samples=num_samples,
        sampling=sampling,
        seeds=[each.seeds for each in requests],
    )


def sample_by_turns(
    ranks: Ranks, prompts: Sequence[Prompt], sample: Sample, *, portion: Portion
) -> Sampled:
    """Return the groups of all `prompts`, of which each rank samples its share.

    A generator may not hold its whole share at once. Then each rank begins with as many prompts as
    it holds, and one that runs dry takes the next that nobody has. Who sampled a group changes
    nothing: seeds are those of the prompts, and the groups come back in their order.

    Args:
        ranks: The ranks of the run.
        prompts: The prompts, the same on every rank.
        sample: It samples and scores the prompts at some places. It is called for none only where
            ranks sample together.
        portion: The prompts that a rank takes together, the same on all.

    Returns:
        The groups in the order of `prompts`, and the sums over ranks of the numbers beside them.

    Raises:
        RankError: Another rank failed.
    """
    if ranks.size == 1:
        return sample(range(len(prompts)))
    everything = range(len(prompts))
    begins = everything[: portion.at_once * ranks.size] if portion.at_once else everything
    mine, left = [place for place in begins if ranks.is_mine(place)], everything[len(begins) :]
    turn = ranks.turns() if left else None

    def work() -> bytes:
        done, found, numbers = list[int](), list[Group](), list[ScoringNumbers]()
        source = _noted(_places(mine, left, turn), done)
        while (calls := _next_call(source, portion, mine)) or portion.together:
            groups, more = sample(calls)
            found, numbers = [*found, *groups], [*numbers, more]
            if portion.refills or portion.together:
                break
        return encode(done, found, _sum(numbers))

    parts = [decode(part, prompts) for part in ranks.share(work)]
    whole = {place: group for groups, _ in parts for place, group in groups.items()}
    return [whole[place] for place in everything], _sum([numbers for _, numbers in parts])


def _next_call(
    source: Iterator[int], portion: Portion, mine: Sequence[int]
) -> Sequence[int] | Iterator[int]:
    """Return the places of one call; none at the end."""
    if portion.refills and mine:
        return source
    return list(islice(source, portion.at_once or len(mine)))


def _places(
    mine: Sequence[int], left: Sequence[int], turn: Callable[[], int] | None
) -> Iterator[int]:
    """Yield a rank's own places, then those of `left` that nobody has taken."""
    yield from mine
    while turn is not None and (number := turn()) < len(left):
        yield left[number]


def _noted(places: Iterator[int], notes: list[int]) -> Iterator[int]:
    """Yield the places, and add each to `notes` when it is taken."""
    for place in places:
        notes.append(place)
        yield place


def _sum(parts: Sequence[ScoringNumbers]) -> ScoringNumbers:
    counts: dict[str, float] = defaultdict(float)
    shares: dict[str, tuple[float, float]] = {}
    for numbers in parts:
        for name, value in numbers.counts.items():
            counts[name] += value
        for name, (above, below) in numbers.shares.items():
            before = shares.get(name, (0.0, 0.0))
            shares[name] = (before[0] + above, before[1] + below)
    return ScoringNumbers(counts, shares)
