"""95% intervals of a success rate on held-out prompts: Wilson, or bootstrap over prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rlkit.tracking.base import EvalRecord, Interval, SampleRow

_Z = 1.959963984540054
_RESAMPLES = 10_000
_SEED = 0


def wilson(successes: float, trials: int) -> Interval:
    """Score interval of a binomial proportion, 95%.

    center = (p + z²/2n) / (1 + z²/n), half width = z √(p(1-p)/n + z²/4n²) / (1 + z²/n).
    Source: Wilson 1927, as in Brown, Cai, DasGupta 2001, eq. 4.

    Raises:
        ValueError: `trials` < 1 or `successes` outside [0, trials].
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must be in [0, trials], got {successes} of {trials}")
    p, n, z2 = successes / trials, trials, _Z * _Z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return Interval(p, low, high)


def bootstrap(values: Sequence[float]) -> Interval:
    """Percentile interval of the mean: 10,000 resamples of the values, fixed seed.

    The values are one mean for each prompt, so whole prompts are resampled: samples of one prompt
    are not independent. Source: Efron and Tibshirani 1993, section 13.3.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval needs at least one prompt, got none")
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(_SEED)
    chunk = max(1, 2_000_000 // len(data))
    means = []
    for start in range(0, _RESAMPLES, chunk):
        size = min(chunk, _RESAMPLES - start)
        means.append(data[generator.integers(len(data), size=(size, len(data)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high))


def success_interval(success: Sequence[float], *, samples_per_prompt: int) -> Interval:
    """The interval of the mean success over prompts.

    Wilson over prompts where each has one 0/1 sample, and where all prompts agree at 0 or 1: the
    bootstrap would claim an interval of width zero there. Bootstrap over prompts otherwise.

    Raises:
        ValueError: no prompts.
    """
    binary = all(value in (0.0, 1.0) for value in success)
    if success and binary and (samples_per_prompt == 1 or len(set(success)) == 1):
        return wilson(sum(success), len(success))
    return bootstrap(success)


def evaluate(
    *,
    label: str,
    step: int,
    prompt_indices: Sequence[int],
    success: Sequence[float],
    samples_per_prompt: int,
    metrics: Mapping[str, float] | None = None,
    samples: Sequence[SampleRow] = (),
) -> EvalRecord:
    """An `EvalRecord` with its interval worked out from `success`, one mean for each prompt.

    Raises:
        ValueError: no prompts, or another number of means than of prompts.
    """
    if len(prompt_indices) != len(success):
        raise ValueError(f"{len(prompt_indices)} prompts but {len(success)} success means")
    return EvalRecord(
        label=label,
        step=step,
        prompt_indices=tuple(prompt_indices),
        success=tuple(success),
        samples_per_prompt=samples_per_prompt,
        interval=success_interval(success, samples_per_prompt=samples_per_prompt),
        metrics=dict(metrics or {}),
        samples=tuple(samples),
    )


def change(before: EvalRecord, after: EvalRecord) -> Interval | None:
    """Mean paired difference after - before over the prompts both share; None without any."""
    old = dict(zip(before.prompt_indices, before.success, strict=True))
    pairs = zip(after.prompt_indices, after.success, strict=True)
    differences = [value - old[index] for index, value in pairs if index in old]
    return bootstrap(differences) if differences else None
