"""This module says how a scorer of whole batches joins the pool: a judge, or a reward model.

A plain function runs in a process that can be killed. A scorer sees all groups of a batch at once:
it keeps many questions in flight, or fills a GPU. It bounds its own time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from rlkit.rewards.wire import Reply

if TYPE_CHECKING:
    from rlkit.types import Completion

_Result = TypeVar("_Result")
_CHECK_EVERY_S = 0.25


class BatchReplies(NamedTuple):
    """These are a scorer's answers about one batch."""

    groups: Sequence[Reply]
    """One for each group, in order."""
    counts: Mapping[str, float] = {}
    """Numbers that add up over batches, such as calls, by a name without the function's."""
    shares: Mapping[str, tuple[float, float]] = {}
    """(numerator, denominator) of numbers that are means, such as how often a place won."""


class BatchScorer(Protocol):
    """A scorer gives every completion of a batch a value, in this process or from elsewhere."""

    def check(self) -> None:
        """Raise ValueError with one line when it could not score; loads no weights."""

    def start(self) -> None:
        """Be ready to score, after `check`; raises ValueError with one line."""

    def score(self, groups: Sequence[Sequence[Completion]], /) -> BatchReplies:
        """Score all groups, within a time that it bounds itself."""
        ...

    def keep_in(self, run_dir: Path, /) -> None:
        """Keep what a resumed run needs in the folder of the run, which exists now."""

    def close(self) -> None:
        """Let go of files and processes; idempotent."""


class Threads:
    """This object runs scorers beside the pool, a thread each.

    The threads are daemons: a second Ctrl-C must not wait for a judge's last deadline.
    """

    def __init__(self, scorers: Mapping[int, BatchScorer]) -> None:
        """Take the scorers by their place among a run's reward functions."""
        self.scorers = dict(scorers)

    def begin(
        self, work: Callable[[BatchScorer], _Result]
    ) -> Callable[[Callable[[], None]], Mapping[int, _Result]]:
        """Begin `work` with every scorer; what is returned waits for the results.

        Waiting raises the first exception of the scorers, in their order. It raises what its
        argument raises, which it calls several times a second.
        """
        futures: dict[int, Future[_Result]] = {}
        for place, scorer in self.scorers.items():
            futures[place] = Future()
            arguments = (futures[place], work, scorer)
            threading.Thread(target=_run, args=arguments, daemon=True).start()

        def results(check: Callable[[], None]) -> Mapping[int, _Result]:
            while wait(futures.values(), timeout=_CHECK_EVERY_S).not_done:
                check()
            return {place: future.result() for place, future in futures.items()}

        return results

    def close(self) -> None:
        """End the scorers; idempotent."""
        for scorer in self.scorers.values():
            scorer.close()


def _run(
    future: Future[_Result], work: Callable[[BatchScorer], _Result], scorer: BatchScorer
) -> None:
    try:
        future.set_result(work(scorer))
    except BaseException as error:  # handed to the thread that waits
        future.set_exception(error)
