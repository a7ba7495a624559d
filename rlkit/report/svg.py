"""This module draws inline SVG: frames with axes, lines, bands, markers; CSS has the colours.

Sizes are CSS pixels of the viewBox; every text is escaped; nothing refers to anything outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rlkit.tracking.drawing import PALETTE, dash_of, marker_of

WIDTH, HEIGHT = 440, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 40
NUM_COLOURS = len(PALETTE)
_RADIUS = 4.0
_MAX_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame is the data range of a chart and its place on the paper."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def frame(xs: Iterable[float], ys: Iterable[float], *, zero_x: bool = False) -> Frame:
    """Return a frame around the finite values, with a little air."""
    x_low, x_high = _extent(xs, start=0.0 if zero_x else None)
    y_low, y_high = _extent(ys)
    air = 0.05 * (y_high - y_low)
    side = 0.02 * (x_high - x_low)
    return Frame(
        x_low=x_low - (0 if zero_x else side),
        x_high=x_high + side,
        y_low=y_low - air,
        y_high=y_high + air,
    )


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
    y_ticks, x_ticks = ticks(frame.y_low, frame.y_high), ticks(frame.x_low, frame.x_high)
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
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


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step + 0.0 for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Write the values with the fewest digits that tell them apart."""
    largest = max((abs(value) for value in values), default=0.0)
    steps = [b - a for a, b in pairwise(values)]
    near = 0.01 * min(steps, default=largest or 1.0)

    def first_exact(write: Callable[[float, int], str], scale: float = 1.0) -> list[str] | None:
        """Return the texts with the fewest digits that are the values; None when there are many."""
        for digits in range(_MAX_DIGITS):
            texts = [write(value / scale, digits) for value in values]
            pairs = zip(texts, values, strict=True)
            if all(abs(float(text) * scale - value) <= near for text, value in pairs):
                return texts
        return None

    if largest >= 10_000:
        found = first_exact(lambda value, digits: f"{value:.{digits}f}", 1000.0)
        found = None if found is None else [f"{text}k" for text in found]
    elif 0 < largest < 0.001:
        found = first_exact(lambda value, digits: f"{value:.{digits}e}" if value else "0")
    else:
        found = first_exact(lambda value, digits: f"{value:.{digits}f}")
    if found is None:  # the values differ in their last digits only: show how they differ
        found = [f"{values[0]:.4g}", *(f"+{value - values[0]:.0e}" for value in values[1:])]
    return [f"−{text[1:]}" if text.startswith("-") else text for text in found]


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


def _extent(values: Iterable[float], *, start: float | None = None) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    if start is not None:
        known.append(start)
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high - low < 1e-12 * max(1.0, abs(high)):
        half = 0.05 * abs(high) or 0.5
        return (low, high + 2 * half) if start is not None else (low - half, high + half)
    return low, high
