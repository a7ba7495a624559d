"""This module tests difference and equivalence by Student's paired t, with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtr

from rlkit.stats.bootstrap import finite


def upper_tail(t: float, degrees: float) -> float:
    """Return P(T > t) of Student's t with `degrees` > 0 degrees of freedom."""
    # The distribution function at -t keeps the digits of a small tail; 1 - cdf(t) would lose them.
    # scipy.special rather than scipy.stats: a third of the time to import.
    return float(stdtr(degrees, -t))


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of "the mean difference is 0".

    Differences that are all equal have no spread: p = 1 when they are 0, else p = 0.

    Raises:
        ValueError: There are fewer than 2 differences, or one is not finite.
    """
    mean, error, degrees = _moments(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return min(1.0, 2 * upper_tail(abs(mean) / error, degrees))


def tost(differences: Sequence[float], *, margin: float) -> float:
    """Return the p-value of "the mean difference lies outside (-margin, margin)".

    A small one means that both are similar.

    It is the larger of the two one-sided paired t tests, at -margin and at +margin.
    Source: Schuirmann 1987. p < 0.05 exactly when the 90% t interval lies within the margin.

    Raises:
        ValueError: `margin` <= 0, there are fewer than 2 differences, or one is not finite.
    """
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    mean, error, degrees = _moments(differences)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return max(
        upper_tail((mean + margin) / error, degrees), upper_tail((margin - mean) / error, degrees)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down adjustment.

    Rejecting below α keeps the chance of any false claim below α.

    The k-th smallest of m is multiplied by m - k + 1. A running maximum follows, at most 1.
    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _moments(differences: Sequence[float]) -> tuple[float, float, int]:
    """Return the mean, its standard error, and the degrees of freedom."""
    data = finite(differences)
    if len(data) < 2:
        raise ValueError(f"a paired test needs at least 2 pairs, got {len(data)}")
    mean = float(data.mean())
    spread = float(data.std(ddof=1))
    # Equal differences keep rounding noise: a spread that is all noise counts as none.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        spread = 0.0
    return mean, spread / math.sqrt(len(data)), len(data) - 1
