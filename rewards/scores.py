"""This module turns the answers of single calls into rewards and a report of what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rlkit.rewards.config import RewardSpec
from rlkit.rewards.wire import WHOLE_GROUP, Failure, Reply, Unit

if TYPE_CHECKING:
    from rlkit.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """This reports what scoring one batch cost and what went wrong."""

    failures: Mapping[tuple[str, Failure], int]
    """Samples without a value because (function, kind) failed."""
    messages: Mapping[tuple[str, Failure], str]
    """The first message of each."""
    not_applicable: Mapping[str, int]
    """Samples for which a function returned None."""
    function_seconds: Mapping[str, float]
    """Time inside each function, summed over the workers."""
    seconds: float
    """Wall-clock time of the whole call."""

    def describe(self) -> list[str]:
        """Return one line for each kind of failure, for the log."""
        return [
            f"reward {name}: {kind.value} on {count} samples: {self.messages[name, kind]}"
            for (name, kind), count in self.failures.items()
        ]

    def metrics(self) -> dict[str, float]:
        """Return `time/reward/{name}`, and `rewards/{name}/not_applicable` where there are any.

        Seconds are summed over the workers, so that they may exceed `time/reward`.
        """
        metrics = {f"time/reward/{name}": s for name, s in self.function_seconds.items()}
        for name, count in self.not_applicable.items():
            metrics[f"rewards/{name}/not_applicable"] = float(count)
        return metrics


class Scores(NamedTuple):
    """These are the rewards of a batch."""

    components: list[list[tuple[float, ...]]]
    """[group][sample][function], unweighted; NaN = not applicable or failed."""
    rewards: list[list[float]]
    """[group][sample]; NaN when no function with a weight gave a value, or one failed and failures
    are not ignored."""
    report: RewardReport

    @property
    def failures(self) -> dict[str, int]:
        """Return the number of samples that failed, by `function/kind`."""
        return {f"{name}/{kind.value}": n for (name, kind), n in self.report.failures.items()}

    def describe(self) -> list[str]:
        """Return one line for each kind of failure, for the log."""
        return self.report.describe()

    def metrics(self) -> dict[str, float]:
        """Return the seconds of each function and the samples that it did not apply to."""
        return self.report.metrics()


class ScoreSheet:
    """A sheet collects the answers of one batch, in any order."""

    def __init__(self, specs: Sequence[RewardSpec], groups: Sequence[Sequence[Completion]]) -> None:
        self._specs = specs
        empty = [math.nan] * len(specs)
        self._values = [[list(empty) for _ in group] for group in groups]
        self._failed = [[[False] * len(specs) for _ in group] for group in groups]
        self._failures: Counter[tuple[str, Failure]] = Counter()
        self._messages: dict[tuple[str, Failure], str] = {}
        self._not_applicable: Counter[str] = Counter()
        self._seconds = dict.fromkeys((spec.name for spec in specs), 0.0)

    def add(self, unit: Unit, reply: Reply) -> None:
        """Enter what a call answered."""
        name = self._specs[unit.function].name
        self._seconds[name] += reply.seconds
        first = 0 if unit.sample == WHOLE_GROUP else unit.sample
        bad = set()
        for position, kind, message in reply.problems:
            if position == WHOLE_GROUP:
                self.fail(unit, kind, message, seconds=0.0)
            else:
                bad.add(position)
                self.fail(unit._replace(sample=first + position), kind, message, seconds=0.0)
        for position, value in enumerate(reply.values):
            if value is not None:
                self._values[unit.group][first + position][unit.function] = value
            elif position not in bad:
                self._not_applicable[name] += 1

    def fail(self, unit: Unit, kind: Failure, message: str, *, seconds: float) -> None:
        """Enter a call without an answer.

        Args:
            unit: The call.
            kind: The way in which it failed.
            message: One line about it; the first of each kind is kept.
            seconds: Time that the call took, >= 0.
        """
        name = self._specs[unit.function].name
        rows = self._failed[unit.group]
        rows = rows if unit.sample == WHOLE_GROUP else [rows[unit.sample]]
        for row in rows:
            row[unit.function] = True
        self._failures[name, kind] += len(rows)
        self._messages.setdefault((name, kind), message)
        self._seconds[name] += seconds

    def scores(self, *, seconds: float, drop_failed: bool) -> Scores:
        """Return the rewards: weighted sums over the values that are not NaN."""
        weights = [spec.weight for spec in self._specs]
        rewards = [
            [
                math.nan
                if drop_failed and any(f and w for f, w in zip(failed, weights, strict=True))
                else weighted_sum(values, weights)
                for values, failed in zip(*rows, strict=True)
            ]
            for rows in zip(self._values, self._failed, strict=True)
        ]
        report = RewardReport(
            failures=dict(self._failures),
            messages=dict(self._messages),
            not_applicable=dict(self._not_applicable),
            function_seconds=dict(self._seconds),
            seconds=seconds,
        )
        components = [[tuple(values) for values in group] for group in self._values]
        return Scores(components, rewards, report)


def weighted_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the sum of weights[k] values[k] over values that count.

    A value counts when it is not NaN and its weight is not 0.

    NaN when there is none: a sample that nothing judged has no reward, not the reward 0.
    """
    terms = [w * v for v, w in zip(values, weights, strict=True) if w and not math.isnan(v)]
    return math.fsum(terms) if terms else math.nan
