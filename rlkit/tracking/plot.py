"""The curves of a run as `curves.png` and `curves.svg`: reward, KL, length, gradient norm."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit.tracking.files import write_atomic
from rlkit.tracking.read import read_metrics

# Okabe and Ito 2008: distinguishable with every common colour blindness; dashes for print.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
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
    figure = _figure(lines, reward_names, title)
    paths = []
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=130)
        path = run_dir / f"curves.{suffix}"
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths


def _figure(lines: Sequence[dict[str, float]], reward_names: Sequence[str], title: str) -> Any:
    # With a home that cannot be written it warns that its cache of fonts is elsewhere.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps global state and wants a display
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(2, 2, sharex=True).ravel()
    _draw_rewards(axes[0], lines, reward_names)
    for axis, (name, label) in zip(axes[1:], _PANELS, strict=True):
        _line(axis, lines, name, colour=_COLOURS[1])
        axis.set_ylabel(label)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[2:]:
        axis.set_xlabel("step")
    return figure


def _draw_rewards(axis: Any, lines: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    _line(axis, lines, "reward", colour=_COLOURS[0], label="reward (weighted sum)", width=2.2)
    steps = [line["step"] for line in lines]
    low = [line.get("reward", math.nan) - line.get("reward_std", math.nan) for line in lines]
    high = [line.get("reward", math.nan) + line.get("reward_std", math.nan) for line in lines]
    axis.fill_between(
        steps, low, high, color=_COLOURS[0], alpha=0.1, linewidth=0, label="± std in a group"
    )
    for k, name in enumerate(names):
        colour = _COLOURS[1 + k % (len(_COLOURS) - 1)]
        dash = _DASHES[(k + 1) % len(_DASHES)]
        _line(axis, lines, f"rewards/{name}/mean", colour=colour, label=name, dash=dash)
    axis.set_ylabel("reward, and each function's raw mean")
    axis.legend(fontsize=8, frameon=False)


def _line(
    axis: Any,
    lines: Sequence[dict[str, float]],
    name: str,
    *,
    colour: str,
    label: str = "",
    dash: str = "-",
    width: float = 1.5,
) -> None:
    values = [line.get(name, math.nan) for line in lines]
    finite = [value if math.isfinite(value) else math.nan for value in values]
    steps = [line["step"] for line in lines]
    marker = "o" if len(lines) < 40 else ""
    axis.plot(
        steps, finite, dash, color=colour, label=label, linewidth=width, marker=marker, markersize=3
    )
