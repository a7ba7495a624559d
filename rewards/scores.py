"""This module turns the answers of single calls into rewards and a report of what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rlkit.rewards.config import RewardSpec
from rlkit.rewards.scorers import BatchReplies
from rlkit.rewards.wire import WHOLE_GROUP, Failure, Reply, Unit

if TYPE_CHECKING:
    from rlkit.types import Completion

_SHOWN = 200


class FailedSample(NamedTuple):
    """This is a sample that a function failed on."""

    group: int
    sample: int
    """Position in its group; 0 when the whole group failed."""
    kind: Failure
    message: str


class TooManyFailures(RuntimeError):
    """A reward function failed on more of a batch than `reward.max_failure_rate` allows."""


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
    examples: Mapping[str, FailedSample] = field(default_factory=dict)
    """The first sample that each function failed on."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Numbers of scorers that add up, such as `rewards/{name}/calls`."""
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(numerator, denominator) of means of scorers, such as `rewards/{name}/first_slot`."""

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
        return {**metrics, **self.counts}


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

    def shares(self) -> Mapping[str, tuple[float, float]]:
        """Return (numerator, denominator) of means, which add up apart over batches."""
        return self.report.shares


class ScoreSheet:
    """A sheet collects the answers of one batch, in any order."""

    def __init__(self, specs: Sequence[RewardSpec], groups: Sequence[Sequence[Completion]]) -> None:
        self._specs = specs
        empty = [math.nan] * len(specs)
        self._values = [[list(empty) for _ in group] for group in groups]
        self._failed = [[[False] * len(specs) for _ in group] for group in groups]
        self._failures: Counter[tuple[str, Failure]] = Counter()
        self._messages: dict[tuple[str, Failure], str] = {}
        self._examples: dict[str, FailedSample] = {}
        self._counts: dict[str, float] = {}
        self._shares: dict[str, tuple[float, float]] = {}
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
        example = FailedSample(unit.group, max(unit.sample, 0), kind, message)
        self._examples.setdefault(name, example)
        self._seconds[name] += seconds

    def add_batch(self, function: int, replies: BatchReplies) -> None:
        """Enter what a scorer answered about all groups."""
        name = self._specs[function].name
        for group, reply in enumerate(replies.groups):
            self.add(Unit(function, group), reply)
        prefix = f"rewards/{name}/"
        self._counts |= {prefix + key: value for key, value in replies.counts.items()}
        self._shares |= {prefix + key: value for key, value in replies.shares.items()}

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
            examples=dict(self._examples),
            counts=dict(self._counts),
            shares=dict(self._shares),
        )
        components = [[tuple(values) for values in group] for group in self._values]
        return Scores(components, rewards, report)


def check_failures(
    scores: Scores,
    specs: Sequence[RewardSpec],
    groups: Sequence[Sequence[Completion]],
    *,
    max_rate: float,
) -> None:
    """Stop when a function with a weight failed on too large a share of a batch.

    Args:
        scores: What the functions answered.
        specs: The functions, in the order of the components.
        groups: The completions that were scored.
        max_rate: Largest share that is allowed, in [0, 1].

    Raises:
        TooManyFailures: The share is larger; the one line shows a completion and what went wrong.
    """
    total = sum(map(len, groups))
    for spec in specs:
        failures = scores.report.failures
        failed = sum(count for (name, _), count in failures.items() if name == spec.name)
        if not spec.weight or failed <= max_rate * total:
            continue
        example = scores.report.examples[spec.name]
        completion = groups[example.group][example.sample]
        raise TooManyFailures(
            f"reward.functions.{spec.name} failed on {failed} of {total} samples, more than "
            f"reward.max_failure_rate={max_rate:g} allows; {example.kind.value}: "
            f"{example.message}; for the completion {completion.text[:_SHOWN]!r} of the prompt "
            f"that ends {completion.prompt.text[-_SHOWN:]!r}"
        )


def weighted_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the sum of weights[k] values[k] over values that count.

    A value counts when it is not NaN and its weight is not 0.

    NaN when there is none: a sample that nothing judged has no reward, not the reward 0.
    """
    terms = [w * v for v, w in zip(values, weights, strict=True) if w and not math.isnan(v)]
    return math.fsum(terms) if terms else math.nan
