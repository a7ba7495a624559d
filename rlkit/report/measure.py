"""This module reads a job's value of a metric after training, or at an equal budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rlkit.report.job import JobRecord
from rlkit.tracking import EvalRecord

Floats = NDArray[np.float64]
SUCCESS = "success"
AREA = "auc"
"""Area under the curve of success over samples, divided by its length: how early it was learnt."""
_LAST_SHARE = 0.1
_ALL = math.inf


class At(StrEnum):
    """The variants are compared at this budget along training."""

    end = "end"
    """After each run's own last step."""
    samples = "samples"
    """At as many sampled completions as every completed run of the panel has."""
    seconds = "seconds"
    """At as many seconds of training, evaluations excluded, as every completed run has."""


EVAL_COST = {At.samples: "samples", At.seconds: "time/train"}
"""Names of the budgets in an evaluation; the steps call them as `At` does."""


def budget(jobs: Sequence[JobRecord], at: At) -> float:
    """Return the largest budget that all of `jobs` have spent; infinite for `At.end`."""
    if at is At.end:
        return _ALL
    spent = [float(job.steps[at.value][-1]) for job in jobs if len(job.steps.get("step", ()))]
    for job in jobs:
        if is_trained(job):
            spent.append(job.evals[-1].metrics.get(EVAL_COST[at], math.inf))
    return min(spent, default=_ALL)


def value(job: JobRecord, metric: str, *, at: At = At.end, limit: float = _ALL) -> float:
    """Return a job's value of `metric` at `limit`; NaN when it was not measured.

    Numbers of evaluations are interpolated between the two around `limit`. Metrics of the steps are
    means over the last tenth of the steps up to there.

    Args:
        job: The job to read.
        metric: `success`, `auc`, `eval/...` or a metric of the steps.
        at: The budget at which it is read.
        limit: The budget in units of `at`; infinity = the end of training.

    Returns:
        The value in the metric's own unit, or NaN.
    """
    if of_evaluations(metric):
        if not is_trained(job):
            return math.nan
        if metric == AREA:
            return _area(job, at, limit)
        if at is At.end:
            return eval_value(job.evals[-1], metric)
        xs = [record.metrics.get(EVAL_COST[at], math.nan) for record in job.evals]
        ys = [eval_value(record, metric) for record in job.evals]
        return float(np.interp(limit, xs, ys)) if np.isfinite(xs).all() else math.nan
    column = _until(job, metric, at, limit)
    if not len(column):
        return math.nan
    return finite_mean(column[-max(1, math.ceil(_LAST_SHARE * len(column))) :].tolist())


def mean_reward(job: JobRecord, *, at: At = At.end, limit: float = _ALL) -> float:
    """Return the mean training reward up to `limit`: the area under the curve over its length."""
    column = _until(job, "reward", at, limit)
    return finite_mean(column.tolist())  # skipped steps have no reward


def start_value(job: JobRecord, metric: str) -> float:
    """Return a job's value of `metric` before training; NaN when it was not measured."""
    if of_evaluations(metric):
        first = job.evals[0] if job.evals and job.evals[0].step == 0 else None
        return eval_value(first, metric) if first else math.nan
    column = job.steps.get(metric)
    return float(column[0]) if column is not None and len(column) else math.nan


def eval_value(record: EvalRecord, metric: str) -> float:
    """Return one number of one evaluation; NaN when it was not measured."""
    if metric == SUCCESS:
        return record.interval.mean
    return record.metrics.get(metric.removeprefix("eval/"), math.nan)


def of_evaluations(metric: str) -> bool:
    """Return whether a metric comes from held-out evaluations, not from the steps."""
    return metric in (SUCCESS, AREA) or metric.startswith("eval/")


def is_trained(job: JobRecord) -> bool:
    """Return whether its last evaluation saw a policy that had been updated."""
    return bool(job.evals) and job.evals[-1].step > 0


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN when there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _area(job: JobRecord, at: At, limit: float) -> float:
    cost = EVAL_COST[At.samples if at is At.end else at]
    xs = np.array([record.metrics.get(cost, math.nan) for record in job.evals])
    ys = np.array([eval_value(record, SUCCESS) for record in job.evals])
    end = min(limit, float(xs[-1]))
    if not np.isfinite(xs).all() or end <= xs[0]:
        return math.nan
    inside = xs < end
    ys = np.append(ys[inside], np.interp(end, xs, ys))
    xs = np.append(xs[inside], end)
    return float((np.diff(xs) * (ys[1:] + ys[:-1]) / 2).sum() / (end - xs[0]))


def _until(job: JobRecord, metric: str, at: At, limit: float) -> Floats:
    column = job.steps.get(metric, np.zeros(0))
    if at is At.end or not len(column):
        return column
    kept: Floats = column[job.steps[at.value] <= limit * (1 + 1e-9)]
    return kept
