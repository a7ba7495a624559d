"""This module draws the page's charts: learning curves, the frontier and those inside tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from rlkit.report import svg
from rlkit.report.curves import AXIS_LABELS, KL_LABEL, MARKERS_A_CURVE, Axis, Curve
from rlkit.report.rows import VariantRow
from rlkit.report.text import fixed, with_range
from rlkit.stats import Estimate
from rlkit.tracking.drawing import marked

_CELL_WIDTH, _CELL_HEIGHT = 150, 20
_FAR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceScale:
    """The difference cells of a table share this range."""

    low: float
    high: float
    margin: float

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return 4 + min(1.0, max(0.0, share)) * (_CELL_WIDTH - 8)


class Way(NamedTuple):
    """This record is the way of one arm through KL and value, evaluation by evaluation."""

    style: int
    kl: Sequence[float]
    values: Sequence[float]


def curves_chart(
    curves: Sequence[Curve], *, axis: Axis, title: str, heights: Sequence[float]
) -> str:
    """Return the mean curves with their bands; thin lines are single seeds.

    `heights` span the y axis.

    Args:
        curves: The curves, one a variant.
        axis: The quantity of the x axis.
        title: The name of the chart, for screen readers.
        heights: Values that the y axis must span.

    Returns:
        The chart as an `<svg>` element.
    """
    frame = svg.frame([x for c in curves for x in c.widths()], heights)
    body = [svg.axes(frame, x_label=AXIS_LABELS[axis])]
    body += [_group(c, _back(frame, c)) for c in curves]
    body += [_group(c, _front(frame, c)) for c in curves]
    description = f"{len(curves)} curve{'s' if len(curves) > 1 else ''} over {AXIS_LABELS[axis]}"
    return svg.document("".join(body), title=title, description=description)


def frontier_chart(
    rows: Sequence[VariantRow], *, title: str, connect: bool = False, ways: Sequence[Way] = ()
) -> str:
    """Return a chart of the final value against KL to the reference.

    A small point is a seed, a large one is the mean.

    `connect` joins the means of a variant, in the order of `rows`; `ways` are thin lines.

    Args:
        rows: The arms to show; those without a final value or a KL are left out.
        title: The name of the chart, for screen readers.
        connect: Whether a line joins the means of a variant.
        ways: Thin lines from the first evaluation to the last.

    Returns:
        The chart as an `<svg>` element.
    """
    seeds = {id(row): row.seed_points for row in rows}
    points = [p for found in seeds.values() for p in found]
    points += [p for way in ways for p in zip(way.kl, way.values, strict=True)]
    frame = svg.frame([p[0] for p in points], [p[1] for p in points])
    body = [svg.axes(frame, x_label=KL_LABEL)]
    shown = [row for row in rows if row.final is not None and row.kl is not None]
    by_variant: dict[int, list[VariantRow]] = {}
    for row in shown:
        by_variant.setdefault(row.arm.style, []).append(row)
    for style, found in by_variant.items():
        parts = [
            svg.line(frame, way.kl, way.values, style=style, thin=True)
            for way in ways
            if way.style == style
        ]
        if connect:
            xs, ys = [_mean(r.kl) for r in found], [_mean(r.final) for r in found]
            parts.append(svg.line(frame, xs, ys, style=style, thin=False))
        for row in found:
            parts += [svg.marker(frame, x, y, style=style, small=True) for x, y in seeds[id(row)]]
            parts.append(_mean_point(frame, row))
        body.append(f'<g data-v="{style}">{"".join(parts)}</g>')
    return svg.document("".join(body), title=title, description=f"{len(shown)} points")


def difference_scale(rows: Sequence[VariantRow], margin: float) -> DifferenceScale:
    """Return a range that holds 0, the margin and the intervals of the table.

    Differences beyond ten margins would squeeze the others into one point: unless all are, they
    are left out, and their cells point off the scale.
    """
    found = [row.comparison.difference for row in rows if row.comparison is not None]
    near = [difference for difference in found if abs(difference.mean) <= _FAR * margin]
    values = [-margin, margin]
    for difference in near or found:
        values += [v for v in difference[:3] if v is not None]
    low, high = min(values), max(values)
    air = 0.08 * (high - low)
    return DifferenceScale(low=low - air, high=high + air, margin=margin)


def difference_cell(difference: Estimate, scale: DifferenceScale, *, style: int) -> str:
    """Return a difference with its interval; the shaded strip is the margin, the line is 0."""
    middle = _CELL_HEIGHT / 2
    left, right = scale.x(-scale.margin), scale.x(scale.margin)
    parts = [
        f'<rect class="margin" x="{left:.1f}" y="1" width="{max(right - left, 1):.1f}" '
        f'height="{_CELL_HEIGHT - 2}"/>',
        f'<path class="axis" d="M{scale.x(0):.1f} 1V{_CELL_HEIGHT - 1}"/>',
    ]
    colour = f"s{style % svg.NUM_COLOURS}"
    beyond = not scale.low <= difference.mean <= scale.high
    if beyond:
        tip, base = (2, 12) if difference.mean < scale.low else (_CELL_WIDTH - 2, _CELL_WIDTH - 12)
        parts.append(
            f'<polygon class="point f{style % svg.NUM_COLOURS}" '
            f'points="{tip},{middle} {base},{middle - 6} {base},{middle + 6}"/>'
        )
    elif difference.low is not None and difference.high is not None:
        low, high = scale.x(difference.low), scale.x(difference.high)
        parts.append(f'<path class="range {colour}" d="M{low:.1f} {middle}H{high:.1f}"/>')
    if not beyond:
        parts.append(svg.symbol(scale.x(difference.mean), middle, style=style))
    label = f"difference {with_range(difference, sign='+')}"
    return (
        f'<svg class="cell" viewBox="0 0 {_CELL_WIDTH} {_CELL_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def stack_cell(shares: Sequence[tuple[str, float]]) -> str:
    """Return one bar of parts that add up to 1; the numbers stand beside it."""
    parts, start = [], 0.0
    for index, (name, share) in enumerate(shares):
        width = share * _CELL_WIDTH
        title = f"<title>{escape(name)} {100 * share:.0f}%</title>"
        parts.append(
            f'<rect class="p{index}" x="{start:.1f}" y="3" width="{max(0.0, width):.1f}" '
            f'height="{_CELL_HEIGHT - 6}">{title}</rect>'
        )
        start += width
    label = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares)
    return (
        f'<svg class="cell" viewBox="0 0 {_CELL_WIDTH} {_CELL_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _back(frame: svg.Frame, curve: Curve) -> str:
    style = curve.arm.style
    parts = [
        svg.line(frame, t.x.tolist(), t.y.tolist(), style=style, thin=True) for t in curve.traces
    ]
    if curve.low is not None and curve.high is not None:
        low, high = curve.low.tolist(), curve.high.tolist()
        parts.append(svg.band(frame, curve.x.tolist(), low, high, style=style))
    return "".join(parts)


def _front(frame: svg.Frame, curve: Curve) -> str:
    style, xs, ys = curve.arm.style, curve.x.tolist(), curve.mean.tolist()
    parts = [svg.line(frame, xs, ys, style=style, thin=False)]
    for i in marked(style, len(xs), markers=MARKERS_A_CURVE):
        title = f"{curve.arm.variant}: {fixed(ys[i])} at {xs[i]:g}"
        parts.append(svg.marker(frame, xs[i], ys[i], style=style, title=title))
    return "".join(parts)


def _group(curve: Curve, body: str) -> str:
    return f'<g data-v="{curve.arm.style}">{body}</g>' if body else ""


def _mean_point(frame: svg.Frame, row: VariantRow) -> str:
    assert row.final is not None and row.kl is not None
    x, y, style = row.kl.mean, row.final.mean, row.arm.style
    where = f" ({row.arm.panel})" if row.arm.panel else ""
    title = f"{row.arm.variant}{where}: {with_range(row.final)} at KL {with_range(row.kl)}"
    bars = ""
    colour = f"s{style % svg.NUM_COLOURS}"
    if row.kl.low is not None and row.kl.high is not None:
        bars += (
            f'<path class="range {colour}" d="M{frame.x(row.kl.low):.1f} {frame.y(y):.1f}'
            f'H{frame.x(row.kl.high):.1f}"/>'
        )
    if row.final.low is not None and row.final.high is not None:
        bars += (
            f'<path class="range {colour}" d="M{frame.x(x):.1f} {frame.y(row.final.low):.1f}'
            f'V{frame.y(row.final.high):.1f}"/>'
        )
    return bars + svg.marker(frame, x, y, style=style, title=title)


def _mean(value: Estimate | None) -> float:
    return math.nan if value is None else value.mean
