"""Numbers as they are shown, and the ticks of axes."""

from __future__ import annotations

import math

import pytest

from rlkit.report.text import count_of, duration, fixed, p_value
from rlkit.tracking.axes import tick_labels, ticks


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (0.0, "0.000"),
        (0.0003, "0.0003"),
        (-0.00003, "−3.0e−05"),
        (123456.0, "1.2e+05"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_fixed(value: float | None, shown: str) -> None:
    assert fixed(value) == shown


def test_small_words() -> None:
    assert fixed(0.02, sign="+") == "+0.020"
    assert [p_value(p) for p in (None, 0.0001, 0.0412, 0.5)] == ["–", "< 0.001", "0.041", "0.50"]
    assert [count_of(n, "seed") for n in (1, 2)] == ["1 seed", "2 seeds"]
    assert [duration(s) for s in (4.2, 185.0, 7800.0)] == ["4.2 s", "3m05s", "2h10m"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 12.0, ["0", "5", "10"]),
        (0.15, 1.02, ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.05, 0.05, ["−0.04", "−0.02", "0.00", "0.02", "0.04"]),
        (0.0, 30000.0, ["0k", "10k", "20k", "30k"]),
        (0.0, 0.0004, ["0", "1e-04", "2e-04", "3e-04", "4e-04"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high)) == labels
