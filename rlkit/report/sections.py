"""This module makes the parts of the page that show numbers: tables, curves and frontiers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.report.arms import Arm
from rlkit.report.charts import (
    Way,
    curves_chart,
    difference_cell,
    difference_scale,
    frontier_chart,
)
from rlkit.report.curves import Axis, Curve, curve, num_evals
from rlkit.report.load import StudyKind
from rlkit.report.measure import SUCCESS, At
from rlkit.report.results import Results
from rlkit.report.rows import VariantRow
from rlkit.report.text import duration, whole

_CURVE_EVALS = 3
_MORE = {
    "eval/entropy": ("held-out entropy", "entropy on held-out prompts, nats a token"),
    "eval/length_wrong": ("length of wrong answers", "length of wrong held-out answers, tokens"),
    "completions/mean_length": ("length", "completion length, tokens"),
    "entropy": ("entropy", "entropy of the training batches, nats a token"),
    "grad_norm": ("gradient norm", "gradient norm"),
    "clip_ratio/region_mean": ("clipping", "share of tokens outside the clip range"),
    "frac_reward_zero_std": ("groups without signal", "share of groups with equal rewards"),
    "pg_signal": ("policy-gradient signal", "policy-gradient signal: mean |advantage|"),
    "sampling/ess": ("sampler mismatch", "effective sample size of sampler against trainer"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """This record is one panel's chart, drawn over each axis it is offered on."""

    panel: str
    by_axis: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartGroup:
    """This record is one quantity on every panel."""

    title: str
    short: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryLine:
    """This record is one row of a result table with its drawn difference."""

    row: VariantRow
    cell: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """This record has the results of one panel."""

    panel: str
    budget: str
    """The budget at which its variants are compared; empty for the end of training."""
    lines: tuple[SummaryLine, ...]
    seeds: tuple[int, ...]
    """Every seed that has a value, for the table of single values."""


def result_tables(results: Results) -> list[Table]:
    """Return one table a panel; the difference cells of a table share their scale."""
    tables = []
    for panel, rows in results.panels.items():
        scale = difference_scale(rows, results.margin)
        lines = []
        for row in rows:
            cell = ""
            if row.comparison is not None:
                cell = difference_cell(row.comparison.difference, scale, style=row.arm.style)
            lines.append(SummaryLine(row=row, cell=cell))
        seeds = sorted({seed for row in rows for seed in row.values})
        tables.append(
            Table(
                panel=panel,
                budget=_budget(results, panel),
                lines=tuple(lines),
                seeds=tuple(seeds),
            )
        )
    return tables


def _budget(results: Results, panel: str) -> str:
    limit = results.limits[panel]
    if results.at is At.end or not math.isfinite(limit):
        return ""
    if results.at is At.samples:
        return f"{whole(limit)} completions sampled"
    return f"{duration(limit)} of training"


def curve_groups(results: Results) -> tuple[list[ChartGroup], list[ChartGroup]]:
    """Return the main curves, over every axis, and further ones, over steps."""
    panels = {panel: [row.arm for row in rows] for panel, rows in results.panels.items()}
    names = {"reward": "training reward"}
    evaluated = num_evals([arm for arms in panels.values() for arm in arms]) >= _CURVE_EVALS
    if evaluated:
        names = dict([results.evaluated]) | names
        how = "exact" if results.is_exact else "on fresh samples"
        names["eval/kl"] = f"KL(policy ‖ reference), {how}, nats a completion"
    main = [_group(panels, metric, "", title, list(Axis)) for metric, title in names.items()]
    more = [
        _group(panels, metric, short, title, [Axis.steps])
        for metric, (short, title) in _MORE.items()
        if evaluated or not metric.startswith("eval/")
    ]
    return [g for g in main if g is not None], [g for g in more if g is not None]


def frontiers(results: Results) -> list[tuple[str, str]]:
    """Return (what its rows have in common, chart) of final value against KL."""
    charts = results.frontiers
    measured = [row for rows in charts.values() for row in rows]
    if not measured or (results.study.kind is StudyKind.run and not _ways(results, measured)):
        return []
    title = f"{results.metric_label} against KL to the reference"
    connect = bool(results.joined)
    return [
        (
            name,
            frontier_chart(
                rows,
                title=f"{title}, {name}" if name else title,
                connect=connect,
                ways=[] if connect else _ways(results, rows),
            ),
        )
        for name, rows in charts.items()
    ]


def _ways(results: Results, rows: Sequence[VariantRow]) -> list[Way]:
    """Return the KL and value each arm went through: means of the evaluations all seeds have."""
    if results.at is not At.end or not _is_point(results.metric):
        return []
    ways = []
    for row in rows:
        kl, value = (curve(row.arm, name, Axis.steps) for name in ("eval/kl", results.metric))
        if kl is not None and value is not None and len(kl.x) == len(value.x) >= _CURVE_EVALS:
            ways.append(Way(row.arm.style, kl.mean.tolist(), value.mean.tolist()))
    return ways


def _group(
    panels: Mapping[str, Sequence[Arm]],
    metric: str,
    short: str,
    title: str,
    axes: Sequence[Axis],
) -> ChartGroup | None:
    found = {
        (panel, axis): [c for arm in arms if (c := curve(arm, metric, axis)) is not None]
        for panel, arms in panels.items()
        for axis in axes
    }
    # Panels share the vertical axis: they are there to be compared.
    heights = [y for curves in found.values() for c in curves for y in c.heights()]
    drawn = []
    for panel in panels:
        name = f"{title}, {panel}" if panel else title
        by_axis = {
            axis.value: curves_chart(curves, axis=axis, title=name, heights=heights)
            for axis in axes
            if any(map(_has_points, curves := found[panel, axis]))
        }
        if by_axis:
            drawn.append(Chart(panel=panel, by_axis=by_axis))
    return ChartGroup(title=title, short=short, charts=tuple(drawn)) if drawn else None


def _is_point(metric: str) -> bool:
    """Return whether every evaluation has a value of `metric`."""
    return metric == SUCCESS or metric.startswith("eval/")


def _has_points(found: Curve) -> bool:
    return bool(len(found.x)) or bool(found.traces)
