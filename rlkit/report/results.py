"""This module has a report's numbers: final values, comparisons with the baseline, aggregates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.report.arms import arms_of, panels_of, pick_baseline
from rlkit.report.job import JobRecord, key_of
from rlkit.report.load import Study, StudyError
from rlkit.report.measure import AREA, EVAL_COST, SUCCESS, At, budget, of_evaluations, value
from rlkit.report.rows import Reading, VariantRow, panel_rows
from rlkit.stats import MIN_SEEDS, Estimate, stratified_improvement, stratified_iqm
from rlkit.tracking.base import Measure

MIN_TASKS = 3
_AT_LABELS = {At.end: "", At.samples: " at equal samples", At.seconds: " at equal training time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """This record is one variant over all tasks."""

    variant: str
    style: int
    iqm: Estimate
    improvement: Estimate | None
    """P(variant > baseline), mean over tasks; None for the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """This record has all numbers of a study."""

    study: Study
    metric: str
    metric_label: str
    margin: float
    at: At
    limits: Mapping[str, float]
    """Budget at which each panel is compared; infinite for `At.end`."""
    baseline: str
    panels: Mapping[str, list[VariantRow]]
    aggregates: list[Aggregate]
    no_aggregates: str
    """Why there are none; empty when there are."""

    @property
    def is_exact(self) -> bool:
        """Return whether evaluations are expectations and not means of samples."""
        return _is_exact(self.study.jobs)

    @property
    def evaluated(self) -> tuple[str, str]:
        """Return metric of the evaluations that is compared, and its name; success if none is."""
        chosen = self.metric if self.metric.startswith("eval/") else SUCCESS
        return chosen, _label(chosen, self.study.jobs)

    @property
    def column(self) -> str:
        """Return the name that tables give to the values that are compared."""
        return _measured(self.study.jobs) if self.metric == SUCCESS else self.metric

    @property
    def has_tasks(self) -> bool:
        """Return whether the panels are tasks, over which aggregates make sense."""
        return any(panel.startswith("task") for panel in self.panels)

    @property
    def rows(self) -> list[VariantRow]:
        return [row for rows in self.panels.values() for row in rows]

    @property
    def joined(self) -> str:
        """Return the option along which frontiers join points: the first panel that is no task."""
        parts = [part for row in self.rows for part in row.arm.where]
        return next((key_of(part) for part in parts if not part.startswith("task")), "")

    @property
    def frontiers(self) -> dict[str, list[VariantRow]]:
        """Return rows with a final value and a KL, by the chart they share.

        Panels that differ in `joined` alone share one.
        """
        charts: dict[str, list[VariantRow]] = {}
        for row in self.rows:
            if row.kl is not None and row.final is not None:
                name = ", ".join(part for part in row.arm.where if key_of(part) != self.joined)
                charts.setdefault(name, []).append(row)
        return charts


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

    `metric` is `success`, the last held-out evaluation, or `auc`, the area under its curve over
    samples. It may also be `eval/...`, another number of the last evaluation, or a metric of the
    steps. The latter is the mean over the last tenth of them.

    Args:
        study: The jobs to compare.
        metric: The metric to compare by, as said above.
        margin: Differences within ±`margin` count as similar, > 0.
        baseline: The variant that others are compared with; None chooses the first.
        panel_keys: Leaves of the configuration that make panels; None lets `arms_of` choose.
        at: The budget at which the variants are compared.

    Returns:
        All numbers of the study.

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
        panel: panel_rows(
            found, baseline=chosen, margin=margin, read=Reading(metric, at, limits[panel])
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


def _check(metric: str, at: At, done: Sequence[JobRecord]) -> None:
    """Raise StudyError unless some completed job, if there is one, can be read."""
    # Success without a value is one whose samples all failed: the report must show those.
    evaluated = metric in (SUCCESS, AREA) and any(job.evals for job in done)
    if done and not evaluated and all(math.isnan(value(job, metric)) for job in done):
        known = sorted({name for job in done for name in (*_eval_names(job), *job.steps)})
        raise StudyError(f"metric must be one the runs have, got {metric}; {', '.join(known)}")
    if at is At.end or not of_evaluations(metric):
        return
    for job in done:
        if any(EVAL_COST[at] not in record.metrics for record in job.evals):
            raise StudyError(f"at must be end: {job.id} did not record {at.value} of evaluations")


def _why_no_aggregates(panels: Mapping[str, Sequence[VariantRow]]) -> str:
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


def _aggregates(panels: Mapping[str, Sequence[VariantRow]], baseline: str) -> list[Aggregate]:
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


def _eval_names(job: JobRecord) -> list[str]:
    return [SUCCESS, AREA, *(f"eval/{name}" for record in job.evals for name in record.metrics)]


def _label(metric: str, jobs: Sequence[JobRecord]) -> str:
    success = "expected reward (exact)" if _is_exact(jobs) else f"held-out {_measured(jobs)}"
    if metric == AREA:
        return f"area under {success}"
    return success if metric == SUCCESS else metric.replace("eval/", "held-out ", 1)


def _measured(jobs: Sequence[JobRecord]) -> str:
    """Return success or reward, whichever the last evaluations measure; both where jobs differ."""
    found = {job.evals[-1].measure for job in jobs if job.evals} or {Measure.success}
    return " or ".join(measure.value for measure in Measure if measure in found)


def _is_exact(jobs: Sequence[JobRecord]) -> bool:
    records = [job.evals[-1] for job in jobs if job.evals]
    return bool(records) and all(record.samples_per_prompt == 0 for record in records)
