"""How long a decoding step takes, from looks at a generator that may take several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple


class Look(NamedTuple):
    """One report of `Progress`, and when it came."""

    ms: float
    tokens: int


def step_ms(looks: Sequence[Look], rows: int) -> float:
    """Milliseconds in which each of `rows` completions gets a token; 0 where nothing tells.

    From looks between which all rows moved on: those of prompts do not count.
    """
    paces = [
        (b.ms - a.ms) * rows / (b.tokens - a.tokens)
        for a, b in pairwise(looks)
        if b.tokens - a.tokens >= rows
    ]
    return median(paces) if paces else 0.0
