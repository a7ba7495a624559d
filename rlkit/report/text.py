"""This module writes numbers: one rounding, a real minus sign, and a dash for nothing."""

from __future__ import annotations

import math

from rlkit.stats import Estimate

NONE = "–"


def fixed(value: float | None, *, digits: int = 3, sign: str = "") -> str:
    """Return `digits` decimals, one more or scientific where they show nothing, `–` for none."""
    if value is None or not math.isfinite(value):
        return NONE
    smallest = 0.5 * 10.0**-digits
    if smallest / 10 <= abs(value) < smallest:
        digits += 1
    elif value != 0 and (abs(value) < smallest / 10 or abs(value) >= 100_000):
        return f"{value:{sign}.1e}".replace("-", "−")
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def interval(found: Estimate | None, *, sign: str = "") -> str:
    """Return `[low, high]`, or `–` where there are too few seeds for one."""
    if found is None or found.low is None or found.high is None:
        return NONE
    return f"[{fixed(found.low, sign=sign)}, {fixed(found.high, sign=sign)}]"


def with_range(found: Estimate | None, *, sign: str = "") -> str:
    """Return `mean [low, high]`, or the mean alone."""
    if found is None:
        return NONE
    mean = fixed(found.mean, sign=sign)
    return mean if found.low is None else f"{mean} {interval(found, sign=sign)}"


def p_value(value: float | None) -> str:
    """Return a p-value with two digits; `< 0.001` below that."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def count_of(number: int, noun: str) -> str:
    """Return `1 seed`, `3 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def short(seconds: float) -> str:
    """Return seconds with two decimals; `< 0.01` where those show nothing."""
    if not math.isfinite(seconds):
        return NONE
    return "< 0.01" if 0 < seconds < 0.005 else f"{max(0.0, seconds):.2f}"


def duration(seconds: float) -> str:
    """Return `41 s`, `3m05s`, `2h10m`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def whole(value: float) -> str:
    """Return a count with thousands apart."""
    return f"{value:,.0f}".replace(",", "\u2009") if math.isfinite(value) else NONE


def gibibytes(value: float) -> str:
    """Return bytes as GiB."""
    return f"{value / 2**30:.2f} GiB" if math.isfinite(value) else NONE
