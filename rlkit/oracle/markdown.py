"""Numbers and tables of `docs/objective.md` are written this way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rlkit.oracle.measure import PARAMETRISATIONS

EXACT = 1e-10


def number(x: float) -> str:
    """Return three significant digits; `0` for what is zero to 1e-10, `-` for NaN."""
    if math.isnan(x):
        return "-"
    if abs(x) < EXACT:
        return "0"
    return f"{x:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both(cells: Mapping[str, str]) -> str:
    """Return the two parametrisations in one cell."""
    return " ; ".join(cells[p] for p in PARAMETRISATIONS)
