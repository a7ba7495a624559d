"""The numbers of a report: final values of every arm, comparisons with the baseline, aggregates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlkit.report.arms import Arm, arms_of, panels_of, pick_baseline
from rlkit.report.job import Job, State
from rlkit.report.load import Study, StudyError
from rlkit.report.measure import (
    AREA,
    EVAL_COST,
    SUCCESS,
    At,
    budget,
    finite_mean,
    mean_reward,
    of_evaluations,
    start_value,
    value,
)
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

MIN_TASKS = 3
_AT_LABELS = {At.end: "", At.samples: " at equal samples", At.seconds: " at equal training time"}


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
    at: At
    limits: Mapping[str, float]
    """Budget at which each panel is compared; infinite for `At.end`."""
    baseline: str
    panels: Mapping[str, list[Row]]
    aggregates: list[Aggregate]
    no_aggregates: str
    """Why there are none; empty when there are."""

    @property
    def success_label(self) -> str:
        """What the evaluations' success is: a rate of samples, or an exact expectation."""
        return _label(SUCCESS, self.study.jobs)

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
    at: At = At.end,
) -> Results:
    """Compare the arms of `study` by the value of `metric` after training, or `at` a budget.

    `metric` is `success` (the last held-out evaluation), `auc` (area under its curve over
    samples), `eval/...` for another number of the last evaluation, or a metric of the steps (its
    mean over the last tenth of them).

    Raises:
        StudyError: `baseline`, `panel_keys` or `metric` name nothing there is, or `margin` <= 0.
    """
    if not margin > 0:
        raise StudyError(f"margin must be > 0, got {margin}")
    arms = arms_of(study.jobs, panel_keys=panel_keys)
    done = [job for job in study.jobs if job.done]
    _check(metric, at, done)
    chosen = pick_baseline(arms, baseline)
    groups = panels_of(arms)
    limits = {
        panel: budget([job for arm in found for job in arm.done.values()], at)
        for panel, found in groups.items()
    }
    panels = {
        panel: _panel_rows(
            found, baseline=chosen, margin=margin, read=_Reading(metric, at, limits[panel])
        )
        for panel, found in groups.items()
    }
    reason = _why_no_aggregates(panels)
    return Results(
        study=study,
        metric=metric,
        metric_label=_label(metric, done) + _AT_LABELS[at],
        margin=margin,
        at=at,
        limits=limits,
        baseline=chosen,
        panels=panels,
        aggregates=[] if reason else _aggregates(panels, chosen),
        no_aggregates=reason,
    )


class _Reading(NamedTuple):
    """What is read of every job of a panel, and where."""

    metric: str
    at: At
    limit: float

    def values(self, arm: Arm, metric: str) -> dict[int, float]:
        """The finite values of an arm by seed."""
        found = {s: value(j, metric, at=self.at, limit=self.limit) for s, j in arm.done.items()}
        return _finite(found)

    def rewards(self, arm: Arm) -> dict[int, float]:
        """Mean training reward by seed."""
        found = {s: mean_reward(j, at=self.at, limit=self.limit) for s, j in arm.done.items()}
        return _finite(found)


def _check(metric: str, at: At, done: Sequence[Job]) -> None:
    """Raise StudyError unless some completed job, if there is one, can be read."""
    if done and all(math.isnan(value(job, metric)) for job in done):
        known = sorted({name for job in done for name in (*_eval_names(job), *job.steps)})
        raise StudyError(f"metric must be one the runs have, got {metric}; {', '.join(known)}")
    if at is At.end or not of_evaluations(metric):
        return
    for job in done:
        if any(EVAL_COST[at] not in record.metrics for record in job.evals):
            raise StudyError(f"at must be end: {job.id} did not record {at.value} of evaluations")


def _panel_rows(arms: Sequence[Arm], *, baseline: str, margin: float, read: _Reading) -> list[Row]:
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


def _row(arm: Arm, read: _Reading, *, is_baseline: bool, comparison: Comparison | None) -> Row:
    values, kls = read.values(arm, read.metric), read.values(arm, "eval/kl")
    return Row(
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
    return [SUCCESS, AREA, *(f"eval/{name}" for record in job.evals for name in record.metrics)]


def _label(metric: str, jobs: Sequence[Job]) -> str:
    records = [job.evals[-1] for job in jobs if job.evals]
    exact = bool(records) and all(record.samples_per_prompt == 0 for record in records)
    success = "expected reward (exact)" if exact else "held-out success"
    if metric == AREA:
        return f"area under {success}"
    return success if metric == SUCCESS else metric
