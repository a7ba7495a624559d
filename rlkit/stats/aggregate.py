"""This module has aggregates over tasks, as rliable has them.

They are the interquartile mean and the probability of improvement.

Source: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", 2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlkit.stats.bootstrap import RESAMPLES, SEED, Estimate, Floats, finite

_TAILS = (0.025, 0.975)


def iqm(scores: Sequence[float]) -> float:
    """Return the mean of the scores without the lowest and highest quarter, `int(n / 4)` of each.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    return float(_iqm(finite(scores)[None])[0])


def stratified_iqm(tasks: Sequence[Sequence[float]]) -> Estimate:
    """Return IQM over all runs of all tasks; seeds are resampled within each task (10,000 times).

    `size` is the number of runs.

    Raises:
        ValueError: no task, a task without scores, or a score that is not finite.
    """
    data = [finite(scores) for scores in tasks]
    draws = np.random.default_rng(SEED)
    samples = _iqm(np.concatenate([_resample(scores, draws) for scores in data], axis=1))
    low, high = np.quantile(samples, _TAILS)
    everything = np.concatenate(data)
    return Estimate(iqm(everything.tolist()), float(low), float(high), len(everything))


def stratified_improvement(
    tasks: Sequence[Sequence[float]], baselines: Sequence[Sequence[float]]
) -> Estimate:
    """Return the mean over tasks of P(X > Y), where ties count half.

    X are scores of a task, and Y are its baseline's.

    P(X > Y) is the Mann-Whitney U statistic over the number of pairs. X and Y are resampled
    independently within each task.

    `size` is the number of tasks.

    Raises:
        ValueError: other numbers of tasks, no task, one without scores, or a score not finite.
    """
    if len(tasks) != len(baselines) or not tasks:
        raise ValueError(f"tasks must match, at least one, got {len(tasks)} and {len(baselines)}")
    draws = np.random.default_rng(SEED)
    point, samples = 0.0, np.zeros(RESAMPLES)
    for scores, baseline in zip(tasks, baselines, strict=True):
        wins = _wins(finite(scores), finite(baseline))
        point += float(wins.mean())
        rows, columns = (_weights(size, draws) for size in wins.shape)
        samples += ((rows @ wins) * columns).sum(axis=1)
    low, high = np.quantile(samples / len(tasks), _TAILS)
    return Estimate(point / len(tasks), float(low), float(high), len(tasks))


def _iqm(rows: Floats) -> Floats:
    cut = rows.shape[1] // 4
    kept = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut]
    means: Floats = kept.mean(axis=1)
    return means


def _wins(x: Floats, y: Floats) -> Floats:
    """Return (len(x), len(y)): 1 where x > y, 1/2 where they tie."""
    above: Floats = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return above


def _resample(data: Floats, draws: np.random.Generator) -> Floats:
    rows: Floats = data[draws.integers(len(data), size=(RESAMPLES, len(data)))]
    return rows


def _weights(size: int, draws: np.random.Generator) -> Floats:
    """Return how often each of `size` scores is drawn in each resample, as a share."""
    shares: Floats = draws.multinomial(size, np.full(size, 1 / size), size=RESAMPLES) / size
    return shares
