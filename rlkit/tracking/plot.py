"""This module draws `curves.png` and `curves.svg`: reward, KL, length and gradient norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit.tracking.axes import X_AIR, Y_AIR, axis_scale
from rlkit.tracking.drawing import (
    BLACK,
    PALETTE,
    colour_of,
    dash_of,
    marked,
    marker_of,
    new_figure,
    save_figure,
    set_scales,
    tidy,
)
from rlkit.tracking.read import read_metrics

_MARKERS_A_LINE = 40
_NUM_COLOURS = len(PALETTE) - 1
_PANELS = (
    ("kl", "KL to the reference [nats/token]"),
    ("completions/mean_length", "completion length [tokens]"),
    ("grad_norm", "gradient norm"),
)


def draw_curves(run_dir: Path, reward_names: Sequence[str], *, title: str) -> list[Path]:
    """Draw what `metrics.jsonl` holds; returns the files, none for a run without steps.

    Raises:
        TrackingError: a file could not be written; nothing is left of it.
    """
    lines = read_metrics(run_dir)
    if not lines:
        return []
    return save_figure(_figure(lines, reward_names, title), run_dir, "curves", dpi=130)


def _figure(lines: Sequence[dict[str, float]], reward_names: Sequence[str], title: str) -> Any:
    figure = new_figure(width=10, height=6.5)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(2, 2, sharex=True).ravel()
    if any("reward" in line for line in lines):
        _draw_rewards(axes[0], lines, reward_names)
    else:  # a run without rewards
        _line(axes[0], lines, "loss", colour=BLACK, width=2.2)
        axes[0].set_ylabel("loss [nats/token]")
    for axis, (name, label) in zip(axes[1:], _PANELS, strict=True):
        _line(axis, lines, name, colour=colour_of(0))
        axis.set_ylabel(label)
    across = axis_scale([line["step"] for line in lines], air=X_AIR, whole=True)
    for axis in axes:
        tidy(axis)
        set_scales(axis, across=across, up=axis_scale(_heights(axis), air=Y_AIR))
    for axis in axes[2:]:
        axis.set_xlabel("step")
    return figure


def _heights(axis: Any) -> list[float]:
    """Return the y of everything that was drawn on an axis, bands included."""
    bands = [path.vertices[:, 1] for area in axis.collections for path in area.get_paths()]
    return [float(y) for ys in (*(line.get_ydata() for line in axis.lines), *bands) for y in ys]


def _draw_rewards(axis: Any, lines: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    _line(axis, lines, "reward", colour=BLACK, label="reward (weighted sum)", width=2.2)
    steps = [line["step"] for line in lines]
    low = [line.get("reward", math.nan) - line.get("reward_std", math.nan) for line in lines]
    high = [line.get("reward", math.nan) + line.get("reward_std", math.nan) for line in lines]
    axis.fill_between(
        steps, low, high, color=BLACK, alpha=0.1, linewidth=0, label="± std in a group"
    )
    for k, name in enumerate(names):
        style = k + k // _NUM_COLOURS  # leaves out black, which is the weighted sum's
        dash, marker = dash_of(k + 1).matplotlib, marker_of(style).matplotlib
        colour = colour_of(style)
        _line(
            axis,
            lines,
            f"rewards/{name}/mean",
            colour=colour,
            label=name,
            dash=dash,
            marker=marker,
        )
    axis.set_ylabel("reward, and each function's raw mean")
    axis.legend(fontsize=8, frameon=False)


def _line(
    axis: Any,
    lines: Sequence[dict[str, float]],
    name: str,
    *,
    colour: str,
    label: str = "",
    dash: Any = "-",
    marker: str = "o",
    width: float = 1.5,
) -> None:
    values = [line.get(name, math.nan) for line in lines]
    finite = [value if math.isfinite(value) else math.nan for value in values]
    steps = [line["step"] for line in lines]
    axis.plot(
        steps,
        finite,
        linestyle=dash,
        color=colour,
        label=label,
        linewidth=width,
        marker=marker,
        markersize=3,
        markevery=marked(0, len(lines), markers=_MARKERS_A_LINE),
    )
