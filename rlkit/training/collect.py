"""Collect one rollout batch: prompts, samples, rewards; groups that teach nothing are replaced."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from rlkit.ranks import ALONE, Ranks
from rlkit.tracking.base import Phase
from rlkit.training.clock import StepClock
from rlkit.training.curriculum import PARTS
from rlkit.training.exchange import Sampled
from rlkit.training.scoring import Decode, Rewards, completion_of, score_rollouts
from rlkit.training.turns import ask, portion_of, sample_by_turns
from rlkit.types import (
    Completion,
    Generator,
    Group,
    Prompt,
    PromptRequest,
    SamplingConfig,
)

_log = logging.getLogger(__name__)


class PromptSource(Protocol):
    """The task's training prompts; which ones a step sees is a function of the step alone."""

    def __call__(self, *, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        """Return the prompts of a step.

        Args:
            step: The step, >= 0.
            attempt: Above 0 it asks for others, after groups without use.
            success: How often each part of a mixture was right so far; empty without a curriculum.
        """
        ...


class RolloutSource(Protocol):
    """A source gives the trainer a step's rollouts, sampled or read from the task."""

    @property
    def rewards(self) -> Rewards: ...

    @property
    def sampling(self) -> SamplingConfig: ...

    @property
    def group_size(self) -> int: ...

    def collect(
        self,
        step: int,
        *,
        policy_version: int,
        clock: StepClock,
        success: Mapping[str, float] = MappingProxyType({}),
    ) -> Collection:
        """Return the groups of `step`, a pure function of the step, the policy and `success`.

        Args:
            step: The step, >= 0.
            policy_version: Updates that the policy has seen.
            clock: It measures the phases.
            success: How often each part of a mixture was right so far; empty without a curriculum.
        """
        ...


class Collection(NamedTuple):
    """One batch of groups and how hard it was to get."""

    groups: list[Group]
    """Empty when not one sample has a reward."""
    counts: dict[str, float]
    unrewarded: list[Group]
    """The samples of a batch without rewards; empty when `groups` is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples and scores rollout batches; it keeps nothing from one step to the next."""

    generator: Generator
    prompts: PromptSource
    rewards: Rewards
    decode: Decode
    seed: Callable[[int, int, int, int], int]
    """(step, prompt index, sample index, occurrence of the prompt) to the seed of one sample."""
    sampling: SamplingConfig
    group_size: int
    resample: bool
    """Replace groups whose rewards are all equal by other prompts (DAPO's dynamic sampling)."""
    ranks: Ranks = ALONE
    """Each rank samples its share of the prompts, and gets all groups."""
    at_once: int = 0
    """Prompts of one call on a rank; 0 = its whole share. What refills knows its own number."""
    is_right: Callable[[Completion], tuple[str, bool]] | None = None
    """Tells a curriculum the part of a completion and whether it is right; None = there is none."""
    max_attempts: int = 4
    """Rounds of sampling before a step makes do with the groups it has; only with `resample`."""
    rounds_at_once: int = 1
    """Rounds whose prompts are asked together, before it is known that they are needed. The groups
    of a step are the same for any number; what is not needed is dropped."""

    def collect(
        self,
        step: int,
        *,
        policy_version: int,
        clock: StepClock,
        success: Mapping[str, float] = MappingProxyType({}),
    ) -> Collection:
        """Collect one batch of groups for `step`, with no group at all when no sample got a reward.

        A prompt that a step meets again is a group of its own: other samples, its own baseline.

        Args:
            step: The step, >= 0.
            policy_version: Updates that the policy has seen.
            clock: It measures the phases.
            success: How often each part of a mixture was right so far; empty without a curriculum.

        Raises:
            RuntimeError: A rollout is older than `policy_version`, the policy that will learn.
        """
        counts: dict[str, float] = defaultdict(float)
        shares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        met: Counter[int] = Counter()
        groups: list[Group] = []
        spare: list[Group] = []
        unrewarded: list[Group] = []
        wanted = 0
        most = self.max_attempts if self.resample else 1
        waiting: list[list[Group]] = []
        for attempt in range(most):
            if not waiting:
                rounds = [
                    self.prompts(step=step, attempt=number, success=success)
                    for number in range(attempt, min(attempt + self.rounds_at_once, most))
                ]
                waiting = self._sample(step, rounds, met, clock, counts, shares)
                wanted = wanted or len(rounds[0])
            everything = waiting.pop(0)
            self._note(everything, counts)
            _note_drafts(everything, shares)
            _check_fresh(everything, policy_version)
            scored = _with_rewards(everything, counts)
            unrewarded += [] if scored else everything
            for group in scored:
                uninformative = self.resample and len({sample.reward for sample in group}) == 1
                if uninformative:
                    spare.append(group)
                elif len(groups) < wanted:
                    groups.append(group)
            if len(groups) >= wanted:
                break
        if self.rounds_at_once > 1:
            counts["rollouts/unused"] = sum(len(group) for groups in waiting for group in groups)
        counts["rollouts/uninformative_groups"] += len(spare)
        counts |= {name: above / below for name, (above, below) in shares.items() if below}
        # A step never aborts for want of signal: what is missing is filled up with zero-std groups.
        groups += spare[: max(0, wanted - len(groups))]
        return Collection(groups, dict(counts), [] if groups else unrewarded)

    def _sample(
        self,
        step: int,
        rounds: Sequence[Sequence[Prompt]],
        met: Counter[int],
        clock: StepClock,
        counts: dict[str, float],
        shares: dict[str, list[float]],
    ) -> list[list[Group]]:
        """Return the scored groups of each round."""
        prompts = [prompt for some in rounds for prompt in some]
        seeds = self._seeds(step, prompts, met)

        def sample(places: Iterable[int]) -> Sampled:
            with clock.phase(Phase.generate):
                rollouts = ask(
                    self.generator,
                    places,
                    lambda place: PromptRequest(prompts[place], seeds[place]),
                    num_samples=self.group_size,
                    sampling=self.sampling,
                )
            with clock.phase(Phase.reward):
                return score_rollouts(rollouts, self.rewards, self.decode)

        portion = portion_of(self.generator, self.group_size, at_once=self.at_once)
        scored, scoring = sample_by_turns(self.ranks, prompts, sample, portion=portion)
        for name, number in scoring.counts.items():
            counts[name] += number
        for name, (above, below) in scoring.shares.items():
            shares[name] = [shares[name][0] + above, shares[name][1] + below]
        groups = iter(scored)
        return [[next(groups) for _ in some] for some in rounds]

    def _note(self, scored: Sequence[Group], counts: dict[str, float]) -> None:
        """Count samples that the step takes into account, and what a curriculum learns of them."""
        counts["rollouts/sampled"] += sum(len(group) for group in scored)
        if self.is_right is None:
            return
        for rollout in (s.rollout for group in scored for s in group):
            part, right = self.is_right(completion_of(rollout, self.decode))
            counts[f"{PARTS}{part}/right"] += float(right)
            counts[f"{PARTS}{part}/samples"] += 1.0

    def _seeds(self, step: int, prompts: Sequence[Prompt], met: Counter[int]) -> list[list[int]]:
        """Return the seeds of each prompt's samples; `met` counts how often the step had it."""
        seeds = []
        for prompt in prompts:
            seen = met[prompt.index]
            met[prompt.index] += 1
            places = range(self.group_size)
            seeds.append([self.seed(step, prompt.index, i, seen) for i in places])
        return seeds


def _note_drafts(groups: Sequence[Group], shares: dict[str, list[float]]) -> None:
    """Count the tokens that were guessed before they were sampled, where any were."""
    rollouts = [sample.rollout for group in groups for sample in group]
    drafted = sum(rollout.drafted for rollout in rollouts)
    if not drafted:
        return
    accepted = sum(rollout.accepted for rollout in rollouts)
    tokens = sum(rollout.num_sampled for rollout in rollouts)
    for name, above, below in (
        ("generate/draft_acceptance", accepted, drafted),
        ("generate/tokens_per_pass", tokens, tokens - accepted),
    ):
        shares[name] = [shares[name][0] + above, shares[name][1] + below]


def _check_fresh(groups: Sequence[Group], policy_version: int) -> None:
    """Refuse rollouts of an older policy: losses take the learner for the sampler's policy."""
    oldest = min((s.rollout.policy_version for g in groups for s in g), default=policy_version)
    if oldest < policy_version:
        raise RuntimeError(
            f"rollouts must come from policy version {policy_version}, got version {oldest}: the "
            "generator did not take the newest adapter"
        )


def _with_rewards(scored: Sequence[Group], counts: dict[str, float]) -> list[Group]:
    """Return the samples that have a reward, and their groups; count the others."""
    groups = [tuple(s for s in group if not math.isnan(s.reward)) for group in scored]
    counts["rollouts/without_reward"] += sum(map(len, scored)) - sum(map(len, groups))
    return [group for group in groups if group]
