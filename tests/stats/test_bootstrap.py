"""Bootstrap intervals against the enumeration of every resample, and against scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap

from rlkit.stats import MIN_SEEDS, estimate, mean_band, paired_estimate

VALUES = [0.81, 0.86, 0.92, 0.79, 0.95]


def every_mean(values: list[float]) -> np.ndarray:
    """Means of all n**n equally likely resamples."""
    return np.array([np.mean(resample) for resample in product(values, repeat=len(values))])


def test_the_interval_is_the_quantiles_of_all_resamples() -> None:
    means = every_mean(VALUES)
    assert len(means) == 5**5
    low, high = np.quantile(means, [0.025, 0.975])
    found = estimate(VALUES)
    assert found.mean == pytest.approx(0.866)
    # 10,000 draws place a 2.5% quantile within 4 standard errors of its level.
    slack = 4 * np.sqrt(0.025 * 0.975 / 10_000)
    assert found.low is not None and found.high is not None
    assert np.quantile(means, 0.025 - slack) <= found.low <= np.quantile(means, 0.025 + slack)
    assert np.quantile(means, 0.975 - slack) <= found.high <= np.quantile(means, 0.975 + slack)
    assert found.low == pytest.approx(low, abs=0.002)
    assert found.high == pytest.approx(high, abs=0.002)


def test_the_interval_agrees_with_scipy_on_twenty_seeds() -> None:
    values = np.random.default_rng(3).normal(0.9, 0.05, size=20)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    found = estimate(values.tolist())
    # Two independent draws of 10,000: 4 standard errors of the difference of their quantiles.
    assert found.low == pytest.approx(theirs.low, abs=0.0017)
    assert found.high == pytest.approx(theirs.high, abs=0.0017)


def test_it_is_reproducible_and_without_spread_it_is_a_point() -> None:
    assert estimate(VALUES) == estimate(VALUES)
    assert estimate([0.25] * 7) == (0.25, 0.25, 0.25, 7)


def test_fewer_than_five_seeds_have_no_interval() -> None:
    assert MIN_SEEDS == 5
    found = estimate(VALUES[:4])
    assert found.mean == pytest.approx(0.845)
    assert found[1:] == (None, None, 4)


def test_pairs_remove_what_seeds_share() -> None:
    offsets = [0.1, 0.4, 0.2, 0.9, 0.6, 0.3]
    gains = [0.05, 0.06, 0.04, 0.05, 0.07, 0.03]
    ours = [a + b for a, b in zip(offsets, gains, strict=True)]
    found = paired_estimate(ours, offsets)
    assert found.mean == pytest.approx(0.05)
    means = every_mean(gains[:6])
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.001)
    assert found.high == pytest.approx(high, abs=0.001)


def test_a_band_is_the_interval_of_each_point() -> None:
    curves = np.random.default_rng(0).normal(size=(8, 3))
    low, high = mean_band(curves)
    for i in range(3):
        found = estimate(curves[:, i].tolist())
        assert low[i] == pytest.approx(found.low, abs=0.04)
        assert high[i] == pytest.approx(found.high, abs=0.04)


def test_a_band_of_curves_that_only_shift_has_the_width_of_the_shifts() -> None:
    shape = np.linspace(0, 1, 4)
    shifts = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    low, high = mean_band(shape[None] + shifts[:, None])
    assert np.ptp(high - low) == pytest.approx(0, abs=1e-12)
    assert high[0] - shape[0] == pytest.approx(0.12, abs=0.021)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")] * 6])
def test_what_is_not_finite_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        estimate(values)


def test_pairs_of_other_lengths_and_thin_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths, got 2 and 1"):
        paired_estimate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 5 seeds, got 4"):
        mean_band(np.zeros((4, 2)))
