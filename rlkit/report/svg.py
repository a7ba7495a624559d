"""This module draws inline SVG: frames with axes, lines, bands, markers; CSS has the colours.

Sizes are CSS pixels of the viewBox; every text is escaped; nothing refers to anything outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from rlkit.tracking.axes import X_AIR, Y_AIR, AxisScale, axis_scale
from rlkit.tracking.drawing import PALETTE, dash_of, marker_of

WIDTH, HEIGHT = 440, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 40
NUM_COLOURS = len(PALETTE)
_RADIUS = 4.0


class Frame(NamedTuple):
    """A frame is the two axes of a chart and their place on the paper."""

    across: AxisScale
    up: AxisScale

    def x(self, value: float) -> float:
        return _LEFT + self.across.share(value) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self.up.share(value) * (HEIGHT - _TOP - _BOTTOM)


def frame(xs: Iterable[float], ys: Iterable[float]) -> Frame:
    """Return a frame around the finite values, with a little air."""
    return Frame(axis_scale(xs, air=X_AIR), axis_scale(ys, air=Y_AIR))


def document(body: str, *, title: str, description: str) -> str:
    """Return the `<svg>` element of a chart, with a name and a description for screen readers."""
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}: {escape(description)}">{body}</svg>'
    )


def axes(frame: Frame, *, x_label: str) -> str:
    """Return grid, tick labels and the x axis' name; the figure's caption names the y axis."""
    parts = []
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value, label in frame.up.labelled():
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    for value, label in frame.across.labelled():
        x = frame.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 17}">{label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="label mid" x="{middle:.0f}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
    )
    return "".join(parts)


def line(frame: Frame, xs: Sequence[float], ys: Sequence[float], *, style: int, thin: bool) -> str:
    """Return a line through the points, in the colour and the dash of a style.

    Args:
        frame: The data range and its place on the paper.
        xs: The x values of the points.
        ys: As many y values.
        style: The number of the style, >= 0.
        thin: Whether it is one seed of many: thin and without a dash.

    Returns:
        The element; empty for fewer than two points.
    """
    if len(xs) < 2:
        return ""
    dash = dash_of(style).svg
    attribute = f' stroke-dasharray="{dash}"' if dash and not thin else ""
    kind = "thin" if thin else "line"
    return f'<path class="{kind} s{style % NUM_COLOURS}"{attribute} d="{_path(frame, xs, ys)}"/>'


def band(
    frame: Frame, xs: Sequence[float], low: Sequence[float], high: Sequence[float], *, style: int
) -> str:
    """Return the area between two curves.

    Args:
        frame: The data range and its place on the paper.
        xs: The x values of both curves.
        low: The lower curve.
        high: The upper curve.
        style: The number of the style, >= 0.

    Returns:
        An SVG element.
    """
    points = [*zip(xs, low, strict=True), *zip(reversed(xs), reversed(high), strict=True)]
    path = _path(frame, [p[0] for p in points], [p[1] for p in points])
    return f'<path class="band f{style % NUM_COLOURS}" d="{path}Z"/>'


def marker(
    frame: Frame, x: float, y: float, *, style: int, title: str = "", small: bool = False
) -> str:
    """Return a point in the colour and the shape of a style; `title` is shown on hovering.

    Args:
        frame: The data range and its place on the paper.
        x: The x value of the point.
        y: Its y value.
        style: The number of the style, >= 0.
        title: The text shown on hovering; empty = none.
        small: Whether it is one seed of many.

    Returns:
        The element; empty when a value is not finite.
    """
    if not (math.isfinite(x) and math.isfinite(y)):
        return ""
    label = f"<title>{escape(title)}</title>" if title else ""
    kind = "dot" if small else "point"
    return symbol(
        frame.x(x), frame.y(y), style=style, kind=kind, inside=label, scale=0.6 if small else 1.0
    )


def symbol(
    x: float, y: float, *, style: int, kind: str = "point", inside: str = "", scale: float = 1.0
) -> str:
    """Return the marker of a style at a place on the paper.

    Args:
        x: The place from the left, in pixels.
        y: The place from the top, in pixels.
        style: The number of the style, >= 0.
        kind: A class of the style sheet.
        inside: Markup inside the element.
        scale: The size, 1 = that of a mean.

    Returns:
        An SVG element.
    """
    outline = marker_of(style).outline
    css = f'class="{kind} f{style % NUM_COLOURS}"'
    radius = _RADIUS * scale
    if outline is None:
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{inside}</circle>'
    corners = " ".join(f"{x + radius * a:.1f},{y + radius * b:.1f}" for a, b in outline)
    return f'<polygon {css} points="{corners}">{inside}</polygon>'


def key(style: int) -> str:
    """Return the line and marker of a style, for legends and tables."""
    dash = dash_of(style).svg
    attribute = f' stroke-dasharray="{dash}"' if dash else ""
    stroke = f'<path class="line s{style % NUM_COLOURS}"{attribute} d="M1 7H33"/>'
    return (
        f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{stroke}'
        f"{symbol(17, 7, style=style)}</svg>"
    )


def palette_css() -> str:
    """Return the colours as a style sheet's `--c0`, `--c1`, ..., for light and dark grounds."""
    light = " ".join(f"--c{i}: {colour.light};" for i, colour in enumerate(PALETTE))
    dark = " ".join(f"--c{i}: {colour.dark};" for i, colour in enumerate(PALETTE))
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ {light} }} }}\n"
    )


def _path(frame: Frame, xs: Sequence[float], ys: Sequence[float]) -> str:
    points = [f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
    return "M" + "L".join(points)
