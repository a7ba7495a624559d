"""This module gives every chart its look: one palette, dashes, markers and matplotlib figures."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.tracking.axes import AxisScale
from rlkit.tracking.files import write_atomic

Outline = Sequence[tuple[float, float]]


class Colour(NamedTuple):
    """A colour has one value for white paper, one for a light page and one for a dark page."""

    paper: str
    light: str
    """Darkened to a contrast of 3:1 on white."""
    dark: str
    """Lightened for a black ground."""


class Dash(NamedTuple):
    """A pattern of a line is spelt as matplotlib and as SVG want it."""

    matplotlib: Any
    svg: str


class Marker(NamedTuple):
    """A marker is spelt as matplotlib wants it, and as a polygon of about unit size."""

    matplotlib: str
    outline: Outline | None
    """None is a circle."""


# Okabe and Ito 2008: distinguishable with every common colour blindness.
PALETTE = (
    Colour("#0072B2", "#0072b2", "#3f9fdc"),
    Colour("#D55E00", "#d55e00", "#f0803a"),
    Colour("#009E73", "#009e73", "#24bd93"),
    Colour("#CC79A7", "#a8497f", "#dd93bd"),
    Colour("#E69F00", "#c07f00", "#e69f00"),
    Colour("#56B4E9", "#2f93cf", "#8fd0f7"),
    Colour("#000000", "#1a1c1f", "#f2f2f2"),
)
# Dashes and markers tell lines apart in print.
DASHES = (
    Dash("-", ""),
    Dash((0, (5, 2)), "7 3"),
    Dash((0, (1, 2)), "2 3"),
    Dash((0, (6, 2, 1, 2)), "9 3 2 3"),
)
MARKERS = (
    Marker("o", None),
    Marker("s", ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))),
    Marker("^", ((0, -1.25), (1.15, 0.85), (-1.15, 0.85))),
    Marker("D", ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0))),
    Marker("v", ((0, 1.25), (1.15, -0.85), (-1.15, -0.85))),
    Marker("P", ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
                 (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4))),
    Marker("*", ((0, -1.35), (0.4, -0.45), (1.3, -0.4), (0.6, 0.2), (0.8, 1.1), (0, 0.6),
                 (-0.8, 1.1), (-0.6, 0.2), (-1.3, -0.4), (-0.4, -0.45))),
)  # fmt: skip
BLACK = PALETTE[-1].paper


def colour_of(style: int) -> str:
    """Return the colour of style number `style` on paper."""
    return PALETTE[style % len(PALETTE)].paper


def dash_of(style: int) -> Dash:
    """Return the dash of style number `style`."""
    return DASHES[style % len(DASHES)]


def marker_of(style: int) -> Marker:
    """Return the marker of style number `style`.

    Each round of the colours moves on by one, so that colour and marker together tell 49 styles
    apart.
    """
    return MARKERS[(style + style // len(PALETTE)) % len(MARKERS)]


def marked(style: int, count: int, *, markers: int) -> list[int]:
    """Return which points of a line show its marker.

    Those of different styles are shifted, so that curves on top of each other show theirs.

    Args:
        style: The number of the style, >= 0.
        count: Points of the line, >= 0.
        markers: About how many of them are marked, >= 1.

    Returns:
        Indices in order; the last point is always among them.
    """
    stride = max(1, math.ceil(count / markers))
    chosen = set(range((style * stride) // 4 % stride, count, stride))
    return sorted(chosen | ({count - 1} if count else set()))


def new_figure(*, width: float, height: float) -> Any:
    """Return an empty figure of `width` x `height` inches."""
    # With a home that cannot be written it warns that its cache of fonts is elsewhere.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps global state and wants a display
    return figure


def tidy(axis: Any) -> None:
    """Give an axis the house's look: a faint grid, and no frame at the top and the right."""
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def set_scales(axis: Any, *, across: AxisScale, up: AxisScale) -> None:
    """Give an axis of matplotlib the range, the ticks and the labels of both its scales."""
    axis.set_xlim(across.low, across.high)
    axis.set_xticks(across.ticks, across.labels)
    axis.set_ylim(up.low, up.high)
    axis.set_yticks(up.ticks, up.labels)


def save_figure(figure: Any, folder: Path, name: str, *, dpi: int) -> list[Path]:
    """Write `name`.png and `name`.svg, each whole or not at all.

    Args:
        figure: A figure of matplotlib.
        folder: The folder of the two files; it must exist.
        name: Their name without the ending.
        dpi: Dots per inch of the PNG.

    Returns:
        The two files.

    Raises:
        TrackingError: A file could not be written; nothing is left of it.
    """
    paths = []
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        # Without the date, the same numbers give the same file.
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(buffer, format=suffix, dpi=dpi, metadata=metadata)
        path = folder / f"{name}.{suffix}"
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths
