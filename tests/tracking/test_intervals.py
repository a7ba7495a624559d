"""Intervals against published numbers, an exact enumeration and the normal approximation."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rlkit.tracking.intervals import bootstrap, change, evaluate, mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval.mean == successes / trials
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_checks_its_input() -> None:
    low, high = wilson(3, 10), wilson(7, 10)
    assert (1 - high.high, 1 - high.low) == pytest.approx((low.low, low.high))
    assert wilson(10, 10).high == 1.0
    for successes, trials in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes must be in"):
            wilson(successes, trials)


def test_bootstrap_agrees_with_the_exact_distribution() -> None:
    """All 5^5 resamples of five prompts."""
    values = [0.0, 0.1, 0.35, 0.8, 1.0]
    exact = sorted(sum(c) / 5 for c in itertools.product(values, repeat=5))
    interval = bootstrap(values)
    assert interval.mean == pytest.approx(0.45)
    assert interval.low == pytest.approx(exact[round(0.025 * len(exact))], abs=0.02)
    assert interval.high == pytest.approx(exact[round(0.975 * len(exact))], abs=0.02)


def test_bootstrap_agrees_with_the_normal_approximation_for_many_prompts() -> None:
    draw = random.Random(1)
    values = [draw.random() for _ in range(3000)]
    mean = sum(values) / 3000
    half = 1.959964 * math.sqrt(sum((v - mean) ** 2 for v in values)) / 3000
    interval = bootstrap(values)
    assert interval.low == pytest.approx(mean - half, abs=0.05 * half)
    assert interval.high == pytest.approx(mean + half, abs=0.05 * half)
    assert bootstrap(values) == interval


def test_samples_of_a_prompt_are_one_cluster() -> None:
    """8 samples each of 50 prompts that are all right or all wrong hold 50 facts, not 400."""
    success = [1.0] * 25 + [0.0] * 25
    interval = mean_interval(success, samples_per_prompt=8)
    naive = wilson(200, 400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(50), rel=0.05)
    assert interval.high - interval.low > 2.5 * (naive.high - naive.low)


def test_perfect_success_has_no_interval_of_width_zero() -> None:
    assert mean_interval([1.0] * 64, samples_per_prompt=2) == wilson(64, 64)
    assert mean_interval([0.0] * 64, samples_per_prompt=2).high == pytest.approx(0.0566, abs=1e-4)
    assert mean_interval([1.0, 0.0, 1.0], samples_per_prompt=1) == wilson(2, 3)
    with pytest.raises(ValueError, match="at least one prompt"):
        mean_interval([], samples_per_prompt=1)


def test_change_is_paired() -> None:
    """Every prompt gained exactly 0.25, so the difference is certain though both means are not."""
    old = [0.0, 0.25, 0.5, 0.75]
    before = evaluate(
        label="before", step=0, prompt_indices=[7, 3, 5, 1], values=old, samples_per_prompt=4
    )
    new = [0.25 + value for value in reversed(old)]
    after = evaluate(
        label="after", step=9, prompt_indices=[1, 5, 3, 7], values=new, samples_per_prompt=4
    )
    assert change(before, after) == (0.25, 0.25, 0.25)
    elsewhere = evaluate(label="x", step=9, prompt_indices=[2], values=[1.0], samples_per_prompt=4)
    assert change(before, elsewhere) is None


def test_evaluate_wants_one_mean_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 values"):
        evaluate(label="x", step=0, prompt_indices=[1, 2], values=[1.0], samples_per_prompt=1)
