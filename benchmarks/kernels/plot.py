"""The picture of a benchmark's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.tracking.drawing import colour_of, new_figure, tidy


def plot(record: Mapping[str, Any], floors: Mapping[str, float], target: Path) -> None:
    """Bars of the time in matmuls, one panel per shape; dashed: the fewest matmuls of each op."""
    shapes = list(record["shapes"])
    figure = new_figure(width=6 * len(shapes), height=4)
    axes = figure.subplots(1, len(shapes), squeeze=False)
    for axis, name in zip(axes[0], shapes, strict=True):
        measured = record["shapes"][name]
        results = measured["results"]
        peers = [p for p in results if "ms" in results[p].get("fwd+bwd", {})]
        for style, (offset, op) in enumerate(((-0.2, "forward"), (0.2, "fwd+bwd"))):
            colour = colour_of(style)
            values = [results[p].get(op, {}).get("matmuls", 0.0) for p in peers]
            y = [i + offset for i in range(len(peers))]
            bars = axis.barh(y, values, 0.38, color=colour, label=op)
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            axis.axvline(floors[op], color=colour, linestyle="--", linewidth=1)
        axis.set_yticks(range(len(peers)), peers)
        axis.invert_yaxis()
        axis.set_xlim(0, 8)
        axis.set_xlabel("time in matmuls of 2 N V D operations (dashed: the floors)")
        axis.set_title(f"{name}: N, D, V = {tuple(measured['shape'])}", fontsize=10)
        axis.legend(loc="lower right")
        tidy(axis)
    figure.suptitle(f"Per-token logps, {record['device']}, {record['date']}")
    figure.savefig(target, dpi=110)
