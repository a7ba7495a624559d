"""A learning curve is an arm's mean with its band over seeds, on steps, samples or seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rlkit.report.arms import Arm
from rlkit.report.job import JobRecord
from rlkit.report.measure import SUCCESS, At, eval_value, finite_mean
from rlkit.stats import MIN_SEEDS, mean_band

Floats = NDArray[np.float64]
_MAX_POINTS = 48


class Axis(StrEnum):
    """This is the quantity on a curve's x axis."""

    steps = "steps"
    samples = "samples"
    seconds = "seconds"


AXIS_OF = {At.end: Axis.steps, At.samples: Axis.samples, At.seconds: Axis.seconds}
"""The x axis that the page shows first: the budget at which the variants are compared."""
AXIS_LABELS = {
    Axis.steps: "training steps",
    Axis.samples: "completions sampled",
    Axis.seconds: "training time [s]",
}
KL_LABEL = "KL(policy ‖ reference), nats a completion"
MARKERS_A_CURVE = 5
_EVAL_COST = {Axis.samples: "samples", Axis.seconds: "time/train"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace holds one job's values of one metric."""

    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve is an arm's mean over completed seeds with its band, and single seeds drawn thin."""

    arm: Arm
    x: Floats
    mean: Floats
    low: Floats | None
    high: Floats | None
    """None with fewer than 5 seeds: then `traces` shows each of them."""
    traces: tuple[Trace, ...]
    """Every seed when there is no band, otherwise those not completed."""

    def widths(self) -> list[float]:
        """Return every x that is drawn of it."""
        return [float(x) for xs in (self.x, *(t.x for t in self.traces)) for x in xs]

    def heights(self) -> list[float]:
        """Return every y that is drawn of it, its band included."""
        arrays = [self.mean, *(t.y for t in self.traces)]
        if self.low is not None and self.high is not None:
            arrays += [self.low, self.high]
        return [float(y) for array in arrays for y in array]


def curve(arm: Arm, metric: str, axis: Axis) -> Curve | None:
    """Return the curve of an arm; None when no job of it has the metric."""
    found = {job.id: _trace(job, metric, axis) for job in arm.jobs}
    traces = {name: trace for name, trace in found.items() if len(trace.x)}
    if not traces:
        return None
    done = [traces[job.id] for job in arm.done.values() if job.id in traces]
    x, rows = _together(done)
    band = mean_band(rows) if len(rows) >= MIN_SEEDS else None
    ids = {job.id for job in arm.done.values()}
    thin = [t for name, t in traces.items() if band is None or name not in ids]
    if len(done) == 1 and len(thin) == 1:
        thin = []  # the mean is the one seed
    return Curve(
        arm=arm,
        x=x,
        mean=rows.mean(axis=0) if len(rows) else np.zeros(0),
        low=None if band is None else band[0],
        high=None if band is None else band[1],
        traces=tuple(thin),
    )


def num_evals(arms: Sequence[Arm]) -> int:
    """Return the most evaluations a job has: curves of held-out numbers need three."""
    return max((len(job.evals) for arm in arms for job in arm.jobs), default=0)


def _trace(job: JobRecord, metric: str, axis: Axis) -> Trace:
    if metric == SUCCESS or metric.startswith("eval/"):
        y = np.array([eval_value(record, metric) for record in job.evals])
        x = np.array(
            [
                float(record.step)
                if axis is Axis.steps
                else record.metrics.get(_EVAL_COST[axis], math.nan)
                for record in job.evals
            ]
        )
    else:
        column = {Axis.steps: "step", Axis.samples: "samples", Axis.seconds: "seconds"}[axis]
        x = job.steps.get(column, np.zeros(0))
        y = job.steps.get(metric, np.full(len(x), math.nan))
        x, y = _thinned(x, y)
    kept = np.isfinite(x) & np.isfinite(y)
    return Trace(x=x[kept], y=y[kept])


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return at most 48 points, each the mean of as many neighbouring steps."""
    if len(x) <= _MAX_POINTS:
        return x, y
    blocks = np.array_split(np.arange(len(x)), _MAX_POINTS)
    means = np.array([finite_mean(y[b].tolist()) for b in blocks])
    return np.array([x[b].mean() for b in blocks]), means


def _together(traces: Sequence[Trace]) -> tuple[Floats, Floats]:
    """Return the traces on one x: their shared one, or else interpolated where all exist."""
    if not traces:
        return np.zeros(0), np.zeros((0, 0))
    first = traces[0].x
    if all(len(t.x) == len(first) and bool((t.x == first).all()) for t in traces):
        return first, np.stack([t.y for t in traces])
    low, high = max(t.x[0] for t in traces), min(t.x[-1] for t in traces)
    if high < low:
        return np.zeros(0), np.zeros((0, 0))
    count = max(2, min(_MAX_POINTS, max(len(t.x) for t in traces)))
    x = np.linspace(low, high, count)
    return x, np.stack([np.interp(x, t.x, t.y) for t in traces])
