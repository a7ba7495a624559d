"""This module has the percentile bootstrap over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_SEEDS = 5
"""Fewer seeds than this show their points and no interval."""
RESAMPLES = 10_000
SEED = 0
_BAND_RESAMPLES = 2_000
_TAILS = (0.025, 0.975)


class Estimate(NamedTuple):
    """This record is a mean over seeds with its 95% interval, or none below `MIN_SEEDS` seeds."""

    mean: float
    low: float | None
    high: float | None
    size: int
    """Values behind it: seeds, runs or tasks."""


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value a seed with its percentile interval.

    The seeds are resampled 10,000 times.

    Source: Efron and Tibshirani 1993, section 13.3. The resamples are always the same ones.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = finite(values)
    if len(data) < MIN_SEEDS:
        return Estimate(float(data.mean()), None, None, len(data))
    low, high = np.quantile(resample_means(data), _TAILS)
    return Estimate(float(data.mean()), float(low), float(high), len(data))


def paired_estimate(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the mean of values - baseline, seed by seed; whole pairs are resampled.

    Raises:
        ValueError: other lengths, no values, or one that is not finite.
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need equal lengths, got {len(values)} and {len(baseline)}")
    return estimate((finite(values) - finite(baseline)).tolist())


def mean_band(curves: Floats) -> tuple[Floats, Floats]:
    """Return the pointwise 95% percentile interval of the mean curve; `curves` is (seeds, points).

    Whole curves are resampled (2,000 times): the points of one seed belong together.

    Raises:
        ValueError: fewer than `MIN_SEEDS` curves.
    """
    seeds = len(curves)
    if seeds < MIN_SEEDS:
        raise ValueError(f"a band needs at least {MIN_SEEDS} seeds, got {seeds}")
    draws = np.random.default_rng(SEED).multinomial(
        seeds, np.full(seeds, 1 / seeds), size=_BAND_RESAMPLES
    )
    low, high = np.quantile(draws @ curves / seeds, _TAILS, axis=0)
    return low, high


def resample_means(data: Floats) -> Floats:
    """Return the means of `RESAMPLES` resamples of `data` with replacement."""
    picks = np.random.default_rng(SEED).integers(len(data), size=(RESAMPLES, len(data)))
    means: Floats = data[picks].mean(axis=1)
    return means


def finite(values: Sequence[float]) -> Floats:
    """Return `values` as an array; raises ValueError when there are none or one is not finite."""
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise ValueError(f"statistics need finite values, at least one, got {list(values)}")
    return data
