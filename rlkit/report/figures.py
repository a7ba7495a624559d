"""This module writes a report's figures as PNG and SVG for a paper: white ground, fixed sizes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit.report.curves import (
    AXIS_LABELS,
    AXIS_OF,
    KL_LABEL,
    MARKERS_A_CURVE,
    curve,
    num_evals,
)
from rlkit.report.results import Results
from rlkit.report.rows import VariantRow
from rlkit.tracking.axes import X_AIR, Y_AIR, axis_scale
from rlkit.tracking.drawing import (
    colour_of,
    dash_of,
    marked,
    marker_of,
    new_figure,
    save_figure,
    set_scales,
    tidy,
)

_MAX_COLUMNS = 4
# This is the size of a legend's text.
_LETTER_INCH, _LINE_INCH = 0.07, 0.19


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Write `curves`, `frontier` and `differences`, as far as there is something to draw.

    Raises:
        TrackingError: a file could not be written.
    """
    figures = {
        "curves": _curves(results),
        "frontier": _frontier(results),
        "differences": _differences(results),
    }
    paths: list[Path] = []
    for name, figure in figures.items():
        if figure is None:
            continue
        paths += save_figure(figure, folder, name, dpi=160)
    return paths


def _curves(results: Results) -> Any | None:
    arms = [row.arm for row in results.rows]
    metric, label, over = "reward", "training reward", AXIS_OF[results.at]
    if num_evals(arms) >= 3:
        metric, label = results.evaluated
    panels = {
        panel: [c for row in rows if (c := curve(row.arm, metric, over)) is not None]
        for panel, rows in results.panels.items()
    }
    if not any(panels.values()):
        return None
    figure, axes = _grid(len(panels), label)
    up = axis_scale([y for cs in panels.values() for c in cs for y in c.heights()], air=Y_AIR)
    for axis, (panel, found) in zip(axes, panels.items(), strict=False):
        for c in found:
            style = c.arm.style
            for trace in c.traces:
                axis.plot(trace.x, trace.y, color=colour_of(style), linewidth=0.6, alpha=0.5)
            if c.low is not None and c.high is not None:
                axis.fill_between(
                    c.x, c.low, c.high, color=colour_of(style), alpha=0.15, linewidth=0
                )
            axis.plot(c.x, c.mean, label=c.arm.variant, **_line(style, len(c.x)))
        across = axis_scale([x for c in found for x in c.widths()], air=X_AIR)
        set_scales(axis, across=across, up=up)
        axis.set_title(panel, fontsize=9, parse_math=False)
        axis.set_xlabel(AXIS_LABELS[over])
    _legend(figure, axes)
    return figure


def _frontier(results: Results) -> Any | None:
    charts = results.frontiers
    if not charts:
        return None
    figure, axes = _grid(len(charts), results.metric_label)
    seeds = {name: [p for row in rows for p in row.seed_points] for name, rows in charts.items()}
    up = axis_scale([y for points in seeds.values() for _, y in points], air=Y_AIR)
    for axis, (name, found) in zip(axes, charts.items(), strict=False):
        by_variant: dict[str, list[VariantRow]] = {}
        for row in found:
            by_variant.setdefault(row.arm.variant, []).append(row)
        for variant, points in by_variant.items():
            xs = [row.kl.mean for row in points if row.kl is not None]
            ys = [row.final.mean for row in points if row.final is not None]
            drawn = _line(points[0].arm.style, len(points))
            if not results.joined:
                drawn |= {"linestyle": ""}
            _spread(axis, points)
            axis.plot(xs, ys, label=variant, **drawn)
        set_scales(axis, across=axis_scale([x for x, _ in seeds[name]], air=X_AIR), up=up)
        axis.set_title(name, fontsize=9, parse_math=False)
        axis.set_xlabel(KL_LABEL)
    _legend(figure, axes)
    return figure


def _spread(axis: Any, points: Sequence[VariantRow]) -> None:
    """Draw each seed as a small point and each interval as a bar, as the page does."""
    for row in points:
        colour, marker = colour_of(row.arm.style), marker_of(row.arm.style).matplotlib
        kl, final = row.kl, row.final
        assert kl is not None and final is not None
        for x, y in row.seed_points:
            axis.plot([x], [y], marker=marker, color=colour, markersize=2.5, alpha=0.6)
        if kl.low is not None and kl.high is not None:
            axis.plot([kl.low, kl.high], [final.mean, final.mean], color=colour, linewidth=1)
        if final.low is not None and final.high is not None:
            axis.plot([kl.mean, kl.mean], [final.low, final.high], color=colour, linewidth=1)


def _differences(results: Results) -> Any | None:
    rows = [row for row in results.rows if row.comparison is not None]
    if not rows:
        return None
    figure = new_figure(width=7.0, height=1.1 + 0.28 * len(rows))
    axis = figure.subplots()
    axis.axvspan(-results.margin, results.margin, color="#dfe6ec", linewidth=0)
    axis.axvline(0, color="#444444", linewidth=0.8)
    shown = [-results.margin, results.margin]
    for place, row in enumerate(rows):
        assert row.comparison is not None
        mean, low, high, _ = row.comparison.difference
        colour = colour_of(row.arm.style)
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
        marker = marker_of(row.arm.style).matplotlib
        axis.plot([mean], [place], marker=marker, color=colour, markersize=6)
        shown += [v for v in (mean, low, high) if v is not None]
    across = axis_scale(shown, air=X_AIR)
    axis.set_xlim(across.low, across.high)
    axis.set_xticks(across.ticks, across.labels)
    names = [f"{r.arm.variant}  {r.arm.panel}".strip() for r in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    label = f"{results.metric_label}: difference to {results.baseline} (strip: ±{results.margin:g})"
    lines = textwrap.wrap(label, int(figure.get_figwidth() / _LETTER_INCH))
    figure.supxlabel("\n".join(lines), fontsize=9, parse_math=False)  # as wide as the figure
    tidy(axis)
    return figure


def _grid(count: int, label: str) -> tuple[Any, Sequence[Any]]:
    columns = min(count, _MAX_COLUMNS)
    lines = math.ceil(count / columns)
    figure = new_figure(width=max(5.0, 3.4 * columns), height=3.1 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis in axes:
        tidy(axis)
    for axis in axes[::columns]:
        axis.set_ylabel(label, parse_math=False)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    if len(found) > 1:
        longest = max(map(len, found))
        entry_inch = 0.6 + _LETTER_INCH * longest
        figure.set_figwidth(max(figure.get_figwidth(), entry_inch))
        columns = max(1, int(figure.get_figwidth() / entry_inch))
        lines = math.ceil(len(found) / columns)
        figure.set_figheight(figure.get_figheight() + _LINE_INCH * lines)
        legend = figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=min(len(found), columns),
            fontsize=8,
            frameon=False,
        )
        for entry in legend.get_texts():
            entry.set_parse_math(False)


def _line(style: int, count: int) -> dict[str, Any]:
    return {
        "color": colour_of(style),
        "linestyle": dash_of(style).matplotlib,
        "marker": marker_of(style).matplotlib,
        "markersize": 4,
        "markevery": marked(style, count, markers=MARKERS_A_CURVE),
        "linewidth": 1.6,
    }
