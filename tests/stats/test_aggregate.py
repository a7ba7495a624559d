"""IQM and probability of improvement: by hand, by scipy (which rliable calls), by enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from rlkit.stats import iqm, stratified_improvement, stratified_iqm


def test_iqm_by_hand() -> None:
    assert iqm([8.0, 1.0, 2.0, 100.0, 3.0, 4.0, -50.0, 5.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([1.0, 2.0, 9.0]) == pytest.approx(4.0)  # int(3 / 4) = 0 are cut


@pytest.mark.parametrize("count", [4, 5, 6, 7, 15, 30])
def test_iqm_is_rliables_trimmed_mean(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    # rliable.metrics.aggregate_iqm: scipy.stats.trim_mean(scores, 0.25, axis=None)
    assert iqm(scores.tolist()) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))


def test_probability_of_improvement_by_hand() -> None:
    # Pairs: 3>1, 3>2, 3=3, 5>1, 5>2, 5>3 of 6, one of them a tie.
    assert stratified_improvement([[3.0, 5.0]], [[1.0, 2.0, 3.0]]).mean == pytest.approx(5.5 / 6)
    assert stratified_improvement([[1.0]], [[1.0]]).mean == 0.5


def test_probability_of_improvement_is_rliables_mann_whitney() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.integers(0, 6, size=9) / 5, draw.integers(0, 5, size=7) / 5
    # rliable.metrics.probability_of_improvement: mannwhitneyu(x, y, "greater").statistic / pairs
    u = stats.mannwhitneyu(x, y, alternative="greater").statistic
    found = stratified_improvement([x.tolist()], [y.tolist()])
    assert found.mean == pytest.approx(u / 63)


def test_the_stratified_iqm_interval_is_that_of_all_resamples() -> None:
    tasks = [[0.1, 0.5, 0.2], [0.9, 0.7, 0.4]]
    every = [
        iqm([*first, *second])
        for first in product(tasks[0], repeat=3)
        for second in product(tasks[1], repeat=3)
    ]
    found = stratified_iqm(tasks)
    assert found.mean == pytest.approx(np.mean([0.2, 0.5, 0.4, 0.7]))
    assert found.size == 6
    low, high = np.quantile(every, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.011)
    assert found.high == pytest.approx(high, abs=0.011)


def _share_of_wins(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(x, y))
    return wins / (len(x) * len(y))


def test_the_stratified_improvement_interval_is_that_of_all_resamples() -> None:
    tasks, baselines = [[0.1, 0.5, 0.3], [0.9, 0.7]], [[0.2, 0.3, 0.4], [0.8, 0.1]]
    strata = []
    for x, y in zip(tasks, baselines, strict=True):
        resamples = product(product(x, repeat=len(x)), product(y, repeat=len(y)))
        strata.append([_share_of_wins(a, b) for a, b in resamples])
    every = (np.array(strata[0])[:, None] + np.array(strata[1])[None]).ravel() / 2
    found = stratified_improvement(tasks, baselines)
    # Task 1: .1 beats none, .5 beats 3, .3 beats .2 and ties .3; task 2: .9 beats 2, .7 beats 1.
    assert found.mean == pytest.approx((4.5 / 9 + 3 / 4) / 2)
    low, high = np.quantile(every, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert found.size == 2


def test_strata_are_resampled_apart() -> None:
    # Tasks without spread keep their level in every resample, however far apart the levels are.
    found = stratified_iqm([[0.0] * 5, [1.0] * 5, [0.5] * 5])
    assert found.low == found.high == found.mean == pytest.approx((0.0 + 2.5 + 1.0 * 3) / 9, abs=1)
    with pytest.raises(ValueError, match="tasks must match, at least one, got 0 and 0"):
        stratified_improvement([], [])
