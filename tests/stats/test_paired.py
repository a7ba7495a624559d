"""t tests, TOST and Holm against mpmath, scipy's own tests and numbers worked out by hand."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from rlkit.stats import Paired, Verdict, compare_all, holm, paired_t, tost
from rlkit.stats.paired import upper_tail

DIFFERENCES = [0.012, -0.004, 0.021, 0.008, 0.015, -0.001]


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 19, 200])
@pytest.mark.parametrize("t", [-40.0, -3.1, -0.2, 0.0, 1e-3, 0.7, 2.776, 12.0, 500.0])
def test_the_tail_of_students_t(t: float, degrees: int) -> None:
    """The regularised incomplete beta function with 60 digits: Abramowitz and Stegun 26.7.1."""
    with mpmath.workdps(60):
        x = degrees / (degrees + mpmath.mpf(t) ** 2)
        tail = mpmath.betainc(mpmath.mpf(degrees) / 2, 0.5, 0, x, regularized=True) / 2
        truth = float(tail if t > 0 else 1 - tail)
    assert upper_tail(t, degrees) == pytest.approx(truth, rel=1e-10, abs=1e-300)


def test_the_tail_of_cauchy_is_an_arc_tangent() -> None:
    assert upper_tail(1.0, 1) == pytest.approx(0.25, rel=1e-13)
    assert upper_tail(2.0, 1) == pytest.approx(0.5 - math.atan(2.0) / math.pi, rel=1e-13)


def test_two_degrees_by_hand() -> None:
    # Mean 2, standard deviation 1, three values: t = 2 sqrt(3), and 2 P(T > t) = 1 - t/sqrt(2+t²).
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)


def test_the_paired_test_is_scipys() -> None:
    zero = [0.0] * len(DIFFERENCES)
    assert paired_t(DIFFERENCES) == pytest.approx(stats.ttest_rel(DIFFERENCES, zero).pvalue)


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.3])
def test_tost_is_the_larger_of_two_one_sided_tests(margin: float) -> None:
    above = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
    assert tost(DIFFERENCES, margin=margin) == pytest.approx(max(above, below), rel=1e-10)


def test_tost_passes_exactly_when_the_90_percent_interval_fits() -> None:
    draw = np.random.default_rng(5)
    decided = set()
    for _ in range(200):
        values = draw.normal(0.01, 0.012, size=6)
        half = stats.t.ppf(0.95, 5) * values.std(ddof=1) / math.sqrt(6)
        inside = abs(values.mean()) + half < 0.02
        assert (tost(values.tolist(), margin=0.02) < 0.05) == inside
        decided.add(bool(inside))
    assert decided == {True, False}


def test_differences_without_spread() -> None:
    assert paired_t([0.0] * 5) == 1.0
    assert paired_t([0.3 - 0.1] * 5) == 0.0
    assert tost([0.0] * 5, margin=0.02) == 0.0
    assert tost([0.02] * 5, margin=0.02) == 1.0
    # 0.1 + k * 0.1 - k * 0.1 differs from 0.1 in its last bits only.
    noisy = [0.1 + k * 0.1 - k * 0.1 for k in range(5)]
    assert len(set(noisy)) > 1 and paired_t(noisy) == 0.0


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_error_below_alpha() -> None:
    draw = np.random.default_rng(1)
    trials = 4000
    false_claims = sum(min(holm(draw.uniform(size=8).tolist())) < 0.05 for _ in range(trials))
    assert false_claims / trials == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / trials))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        paired_t([0.1])
    with pytest.raises(ValueError, match=r"margin must be > 0, got 0\.0"):
        tost([0.1, 0.2], margin=0.0)


def pair(differences: list[float]) -> Paired:
    base = [0.5, 0.7, 0.6, 0.9, 0.8, 0.4][: len(differences)]
    return Paired([b + d for b, d in zip(base, differences, strict=True)], base)


def test_verdicts() -> None:
    pairs = {
        "same": pair([0.001, -0.002, 0.003, 0.0, -0.001, 0.002]),
        "better": pair([0.11, 0.12, 0.09, 0.13, 0.1, 0.12]),
        "worse": pair([-0.4, -0.6, -0.5, -0.8, -0.7, -0.3]),
        "noisy": pair([0.3, -0.4, 0.2, 0.1, -0.2, 0.15]),
        "small but sure": pair([0.010, 0.011, 0.009, 0.010, 0.012, 0.008]),
        "few": pair([0.1, 0.2, 0.1, 0.3]),
    }
    found = compare_all(pairs, margin=0.02)
    assert {name: c.verdict for name, c in found.items()} == {
        "same": Verdict.similar,
        "better": Verdict.above,
        "worse": Verdict.below,
        "noisy": Verdict.inconclusive,
        "small but sure": Verdict.similar,
        "few": Verdict.too_few,
    }
    assert found["few"].p_different is None and found["few"].difference.low is None
    # Five tested variants: the smallest p-value is multiplied by 5, the next one by 4.
    raw = {n: stats.ttest_1samp(c.differences, 0).pvalue for n, c in pairs.items() if n != "few"}
    first, second = sorted(raw, key=raw.__getitem__)[:2]
    assert found[first].p_different == pytest.approx(5 * raw[first], rel=1e-6)
    assert found[second].p_different == pytest.approx(4 * raw[second], rel=1e-6)
