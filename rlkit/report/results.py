"""The numbers of a report: final values of every arm, comparisons with the baseline, aggregates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.report.arms import Arm, arms_of, panels_of, pick_baseline
from rlkit.report.job import Job, State
from rlkit.report.load import Study, StudyError
from rlkit.stats import (
    MIN_SEEDS,
    Comparison,
    Estimate,
    Paired,
    Verdict,
    compare_all,
    estimate,
    stratified_improvement,
    stratified_iqm,
)
from rlkit.tracking import EvalRecord

SUCCESS = "success"
MIN_TASKS = 3
_LAST_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one arm came to."""

    arm: Arm
    is_baseline: bool
    values: Mapping[int, float]
    """Final value by seed, of the completed jobs that have one."""
    final: Estimate | None
    start: float
    """Mean over seeds before training; NaN when it was not measured."""
    kl: Estimate | None
    """KL to the reference by the evaluation's own estimator, nats a completion."""
    training: Estimate | None
    """Mean reward over the whole of training: the area under the curve over its length."""
    comparison: Comparison | None
    """None for the baseline, and where no seed is shared with it."""
    remarks: tuple[str, ...]

    @property
    def verdict(self) -> Verdict | None:
        """What the comparison with the baseline says."""
        return None if self.comparison is None else self.comparison.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One variant over all tasks."""

    variant: str
    style: int
    iqm: Estimate
    improvement: Estimate | None
    """P(variant > baseline), mean over tasks; None for the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All numbers of a study."""

    study: Study
    metric: str
    metric_label: str
    margin: float
    baseline: str
    panels: Mapping[str, list[Row]]
    aggregates: list[Aggregate]
    no_aggregates: str
    """Why there are none; empty when there are."""

    @property
    def has_tasks(self) -> bool:
        """Whether the panels are tasks, over which aggregates make sense."""
        return any(panel.startswith("task") for panel in self.panels)

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.panels.values() for row in rows]


def analyse(
    study: Study,
    *,
    metric: str = SUCCESS,
    margin: float = 0.02,
    baseline: str | None = None,
    panel_keys: Sequence[str] | None = None,
) -> Results:
    """Compare the arms of `study` by the final value of `metric`.

    `metric` is `success` (the last held-out evaluation), `eval/...` for another number of that
    evaluation, or a metric of the steps (its mean over the last tenth of them).

    Raises:
        StudyError: `baseline`, `panel_keys` or `metric` name nothing there is, or `margin` <= 0.
    """
    if not margin > 0:
        raise StudyError(f"margin must be > 0, got {margin}")
    arms = arms_of(study.jobs, panel_keys=panel_keys)
    done = [job for job in study.jobs if job.done]
    if done and all(math.isnan(final_value(job, metric)) for job in done):
        known = sorted({name for job in done for name in (*_eval_names(job), *job.steps)})
        raise StudyError(f"metric must be one the runs have, got {metric}; {', '.join(known)}")
    chosen = pick_baseline(arms, baseline)
    panels = {
        panel: _panel_rows(found, baseline=chosen, metric=metric, margin=margin)
        for panel, found in panels_of(arms).items()
    }
    reason = _why_no_aggregates(panels)
    return Results(
        study=study,
        metric=metric,
        metric_label=_label(metric, done),
        margin=margin,
        baseline=chosen,
        panels=panels,
        aggregates=[] if reason else _aggregates(panels, chosen),
        no_aggregates=reason,
    )


def final_value(job: Job, metric: str) -> float:
    """A job's value of `metric` after training; NaN when it was not measured."""
    if metric == SUCCESS or metric.startswith("eval/"):
        return eval_value(job.evals[-1], metric) if _was_trained(job) else math.nan
    column = job.steps.get(metric)
    if column is None or not len(column):
        return math.nan
    return float(column[-max(1, math.ceil(_LAST_SHARE * len(column))) :].mean())


def eval_value(record: EvalRecord, metric: str) -> float:
    """One number of one evaluation; NaN when it was not measured."""
    if metric == SUCCESS:
        return record.interval.mean
    return record.metrics.get(metric.removeprefix("eval/"), math.nan)


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN when there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _panel_rows(arms: Sequence[Arm], *, baseline: str, metric: str, margin: float) -> list[Row]:
    values = {arm.variant: _finals(arm, metric) for arm in arms}
    against = values.get(baseline, {})
    pairs: dict[str, Paired] = {}
    for name, found in values.items():
        shared = [seed for seed in found if seed in against]
        if name != baseline and shared:
            pairs[name] = Paired([found[s] for s in shared], [against[s] for s in shared])
    compared = compare_all(pairs, margin=margin) if pairs else {}
    return [
        Row(
            arm=arm,
            is_baseline=arm.variant == baseline,
            values=values[arm.variant],
            final=_estimate(values[arm.variant]),
            start=finite_mean([_start(job, metric) for job in arm.done.values()]),
            kl=_estimate(_finals(arm, "eval/kl")),
            training=_estimate(_finite({s: _area(j) for s, j in arm.done.items()})),
            comparison=compared.get(arm.variant),
            remarks=_remarks(arm, values[arm.variant]),
        )
        for arm in arms
    ]


def _finals(arm: Arm, metric: str) -> dict[int, float]:
    found = {seed: final_value(job, metric) for seed, job in sorted(arm.done.items())}
    return _finite(found)


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _estimate(values: Mapping[int, float]) -> Estimate | None:
    return estimate(list(values.values())) if values else None


def _was_trained(job: Job) -> bool:
    return bool(job.evals) and job.evals[-1].step > 0


def _start(job: Job, metric: str) -> float:
    if metric == SUCCESS or metric.startswith("eval/"):
        first = job.evals[0] if job.evals and job.evals[0].step == 0 else None
        return eval_value(first, metric) if first else math.nan
    column = job.steps.get(metric)
    return float(column[0]) if column is not None and len(column) else math.nan


def _area(job: Job) -> float:
    column = job.steps.get("reward")
    return float(np.mean(column)) if column is not None and len(column) else math.nan


def _remarks(arm: Arm, values: Mapping[int, float]) -> tuple[str, ...]:
    """What a reader must know about an arm besides its numbers."""
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


def _never_moved(job: Job) -> bool:
    norms = job.steps.get("grad_norm")
    return norms is not None and len(norms) > 0 and bool((norms == 0).all())


def _why_no_aggregates(panels: Mapping[str, Sequence[Row]]) -> str:
    if not all(panel.startswith("task") for panel in panels):
        return "the panels are not tasks"
    if len(panels) < MIN_TASKS:
        return f"it takes {MIN_TASKS} tasks, there are {len(panels)}"
    names = [{row.arm.variant for row in rows} for rows in panels.values()]
    if any(found != names[0] for found in names):
        return "not every variant was run on every task"
    fewest = min(len(row.values) for rows in panels.values() for row in rows)
    if fewest < MIN_SEEDS:
        return f"it takes {MIN_SEEDS} seeds of every variant on every task, one has {fewest}"
    return ""


def _aggregates(panels: Mapping[str, Sequence[Row]], baseline: str) -> list[Aggregate]:
    scores: dict[str, list[list[float]]] = {}
    styles: dict[str, int] = {}
    for rows in panels.values():
        for row in rows:
            scores.setdefault(row.arm.variant, []).append(list(row.values.values()))
            styles[row.arm.variant] = row.arm.style
    return [
        Aggregate(
            variant=name,
            style=styles[name],
            iqm=stratified_iqm(tasks),
            improvement=None
            if name == baseline
            else stratified_improvement(tasks, scores[baseline]),
        )
        for name, tasks in scores.items()
    ]


def _eval_names(job: Job) -> list[str]:
    return [SUCCESS, *(f"eval/{name}" for record in job.evals for name in record.metrics)]


def _label(metric: str, jobs: Sequence[Job]) -> str:
    records = [job.evals[-1] for job in jobs if job.evals]
    if metric != SUCCESS:
        return metric if metric.startswith("eval/") else f"{metric}, end of training"
    if records and all(record.samples_per_prompt == 0 for record in records):
        return "expected reward (exact)"
    return "held-out success"
