"""This module gives every chart its axes: the range, the round ticks and their labels.

The page of a report and the figures of matplotlib both take theirs from here. All axes are linear:
rewards, success and KL are often 0, which a logarithm cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

X_AIR, Y_AIR = 0.02, 0.05
"""Shares of its range that an axis leaves free at either end."""
_MAX_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisScale:
    """An axis has a range, and ticks with labels within it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def share(self, value: float) -> float:
        """Return where `value` lies: 0 at the lower end, 1 at the upper one."""
        return (value - self.low) / (self.high - self.low)

    def labelled(self) -> Iterator[tuple[float, str]]:
        """Yield each tick with its label, from the lowest on."""
        yield from zip(self.ticks, self.labels, strict=True)


def axis_scale(values: Iterable[float], *, air: float, whole: bool = False) -> AxisScale:
    """Return an axis around the finite ones of `values`.

    Args:
        values: The numbers to show.
        air: The share of the range that stays free at either end, >= 0.
        whole: Whether ticks are whole numbers only, as those of training steps are.

    Returns:
        The axis; from 0 to 1 where no value is finite.
    """
    low, high = _extent(values)
    free = air * (high - low)
    low, high = low - free, high + free
    found = ticks(low, high, least_step=1.0 if whole else 0.0)
    return AxisScale(low=low, high=high, ticks=tuple(found), labels=tuple(tick_labels(found)))


def ticks(low: float, high: float, *, count: int = 5, least_step: float = 0.0) -> list[float]:
    """Return about `count` round numbers within [low, high].

    Args:
        low: The lower end.
        high: The upper end, > low.
        count: How many there are about, >= 1.
        least_step: The least distance of two of them, >= 0; 1 for whole numbers.
    """
    rough = max((high - low) / count, least_step)
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


def _extent(values: Iterable[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high - low < 1e-12 * max(1.0, abs(high)):
        half = 0.05 * abs(high) or 0.5
        return low - half, high + half
    return low, high
