"""Student's t on paired differences: tests of difference and equivalence; Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkit.stats.bootstrap import finite

_TINY = 1e-300
_EPSILON = 1e-15


def upper_tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's t with `degrees` > 0 degrees of freedom.

    For t > 0 it is I_x(degrees/2, 1/2) / 2 at x = degrees / (degrees + t²), I the regularised
    incomplete beta function. Source: Abramowitz and Stegun 26.7.1.
    """
    square = t * t
    if square < 1:  # x near 1 would cost half of the digits of t
        tail = 0.5 - 0.5 * _incomplete_beta(0.5, degrees / 2, square / (degrees + square))
    else:
        tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + square))
    return tail if t > 0 else 1.0 - tail


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p-value of "the mean difference is 0".

    Differences that are all equal have no spread: p = 1 when they are 0, else p = 0.

    Raises:
        ValueError: fewer than 2 differences, or one that is not finite.
    """
    mean, error, degrees = _moments(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return min(1.0, 2 * upper_tail(abs(mean) / error, degrees))


def tost(differences: Sequence[float], *, margin: float) -> float:
    """p-value of "the mean difference lies outside (-margin, margin)": small means similar.

    The larger of the two one-sided paired t tests, at -margin and at +margin.
    Source: Schuirmann 1987. p < 0.05 exactly when the 90% t interval lies within the margin.

    Raises:
        ValueError: `margin` <= 0, fewer than 2 differences, or one that is not finite.
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
    """Holm's step-down adjustment: rejecting below α keeps the chance of any false claim below α.

    The k-th smallest of m is multiplied by m - k + 1; then a running maximum, at most 1.
    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _moments(differences: Sequence[float]) -> tuple[float, float, int]:
    """Mean, its standard error, and the degrees of freedom."""
    data = finite(differences)
    if len(data) < 2:
        raise ValueError(f"a paired test needs at least 2 pairs, got {len(data)}")
    mean = float(data.mean())
    spread = float(data.std(ddof=1))
    # Equal differences keep rounding noise: a spread that is all noise counts as none.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        spread = 0.0
    return mean, spread / math.sqrt(len(data)), len(data) - 1


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised I_x(a, b), by its continued fraction (Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1.0 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Modified Lentz evaluation; converges in O(sqrt(max(a, b))) terms where it is called."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away(1.0 + even * d)
        c = _away(1.0 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / _away(1.0 + odd * d)
        c = _away(1.0 + odd / c)
        value *= d * c
        if abs(d * c - 1.0) < _EPSILON:
            break
    return value


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
