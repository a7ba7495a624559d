"""This module holds the result of each arm of a panel and its comparison with the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlkit.report.arms import Arm
from rlkit.report.job import JobRecord, State
from rlkit.report.measure import At, finite_mean, mean_reward, start_value, value
from rlkit.stats import Comparison, Estimate, Paired, Verdict, compare_all, estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """This record is the result of one arm."""

    arm: Arm
    is_baseline: bool
    values: Mapping[int, float]
    """Final value by seed, of the completed jobs that have one."""
    final: Estimate | None
    start: float
    """Mean over seeds before training; NaN when it was not measured."""
    kls: Mapping[int, float]
    """KL to the reference by seed, from the evaluation's own estimator, nats a completion."""
    kl: Estimate | None
    training: Estimate | None
    """Mean reward over the whole of training: the area under the curve over its length."""
    comparison: Comparison | None
    """None for the baseline, and where no seed is shared with it."""
    remarks: tuple[str, ...]

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict of the comparison with the baseline."""
        return None if self.comparison is None else self.comparison.verdict

    @property
    def seed_points(self) -> list[tuple[float, float]]:
        """Return (KL, final value) of each seed that has both."""
        return [(self.kls[seed], found) for seed, found in self.values.items() if seed in self.kls]


class Reading(NamedTuple):
    """This record names the metric that is read of every job of a panel, and the budget."""

    metric: str
    at: At
    limit: float

    def values(self, arm: Arm, metric: str) -> dict[int, float]:
        """Return the finite values of an arm by seed."""
        found = {s: value(j, metric, at=self.at, limit=self.limit) for s, j in arm.done.items()}
        return _finite(found)

    def rewards(self, arm: Arm) -> dict[int, float]:
        """Return the mean training reward by seed."""
        found = {s: mean_reward(j, at=self.at, limit=self.limit) for s, j in arm.done.items()}
        return _finite(found)


def panel_rows(
    arms: Sequence[Arm], *, baseline: str, margin: float, read: Reading
) -> list[VariantRow]:
    """Return one row an arm; arms of a panel are one family of comparisons with `baseline`.

    Args:
        arms: The arms of one panel.
        baseline: The name of the variant to compare with.
        margin: Differences within ±`margin` count as similar, > 0.
        read: The metric and the budget at which it is read.

    Returns:
        The rows, in the order of `arms`.
    """
    values = {arm.variant: read.values(arm, read.metric) for arm in arms}
    against = values.get(baseline, {})
    pairs: dict[str, Paired] = {}
    for name, found in values.items():
        shared = [seed for seed in found if seed in against]
        if name != baseline and shared:
            pairs[name] = Paired([found[s] for s in shared], [against[s] for s in shared])
    compared = compare_all(pairs, margin=margin) if pairs else {}
    return [
        _row(arm, read, is_baseline=arm.variant == baseline, comparison=compared.get(arm.variant))
        for arm in arms
    ]


def _row(
    arm: Arm, read: Reading, *, is_baseline: bool, comparison: Comparison | None
) -> VariantRow:
    values, kls = read.values(arm, read.metric), read.values(arm, "eval/kl")
    return VariantRow(
        arm=arm,
        is_baseline=is_baseline,
        values=values,
        final=_estimate(values),
        start=finite_mean([start_value(job, read.metric) for job in arm.done.values()]),
        kls=kls,
        kl=_estimate(kls),
        training=_estimate(read.rewards(arm)),
        comparison=comparison,
        remarks=_remarks(arm, values),
    )


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: values[seed] for seed in sorted(values) if math.isfinite(values[seed])}


def _estimate(values: Mapping[int, float]) -> Estimate | None:
    return estimate(list(values.values())) if values else None


def _remarks(arm: Arm, values: Mapping[int, float]) -> tuple[str, ...]:
    """Return the remarks that a reader needs about an arm besides its numbers."""
    found = []
    done = list(arm.done.values())
    unfinished = len(arm.jobs) - len(done)
    if unfinished:
        states = [job.state for job in arm.jobs if not job.done]
        counts = [f"{states.count(s)} {s.value}" for s in State if s in states]
        found.append(", ".join(counts))
    if len(values) < len(done):
        found.append(f"{len(done) - len(values)} without a finite value")
    if done and all(_never_moved(job) for job in done):
        found.append("never moved: gradient norm exactly 0 at every step")
    return tuple(found)


def _never_moved(job: JobRecord) -> bool:
    norms = job.steps.get("grad_norm")
    return norms is not None and len(norms) > 0 and bool((norms == 0).all())
