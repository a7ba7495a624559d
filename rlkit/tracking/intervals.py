"""A mean over held-out prompts gets a 95% interval: Wilson's, or a bootstrap over prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlkit.tracking.base import EvalRecord, Interval, Measure, SampleRow

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
    """Return the percentile interval of the mean: 10,000 resamples of the values, fixed seed.

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


def mean_interval(values: Sequence[float], *, samples_per_prompt: int) -> Interval:
    """Return the interval of the mean over prompts; prompts without a value (NaN) do not count.

    Wilson's interval is for prompts with one 0/1 sample each, and for prompts that all agree at 0
    or 1. The bootstrap would claim an interval of width zero there. Otherwise
    the bootstrap over prompts is used.

    Args:
        values: One mean for each prompt; NaN = no sample of it was judged.
        samples_per_prompt: Samples of each prompt; 0 = exact expectations.

    Returns:
        Mean and interval, all NaN when every value is.

    Raises:
        ValueError: There are no prompts.
    """
    judged = [value for value in values if not math.isnan(value)]
    if values and not judged:
        return Interval(math.nan, math.nan, math.nan)
    binary = all(value in (0.0, 1.0) for value in judged)
    if judged and binary and (samples_per_prompt == 1 or len(set(judged)) == 1):
        return wilson(sum(judged), len(judged))
    return bootstrap(judged)


def evaluate(
    *,
    label: str,
    step: int,
    prompt_indices: Sequence[int],
    values: Sequence[float],
    samples_per_prompt: int,
    measure: Measure = Measure.success,
    prompt_keys: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    samples: Sequence[SampleRow] = (),
) -> EvalRecord:
    """Return an `EvalRecord` with its interval worked out from `values`.

    Args:
        label: `before`, `after`, or what the evaluation is called.
        step: Updates that the policy has seen.
        prompt_indices: Index of each held-out prompt.
        values: Mean of `measure` for each prompt; NaN = no sample of it was judged.
        samples_per_prompt: Samples of each prompt; 0 = exact expectations.
        measure: What `values` are means of.
        prompt_keys: A content hash for each prompt, or none at all.
        metrics: Further numbers.
        samples: The rows for the completions table.

    Returns:
        The record.

    Raises:
        ValueError: There are no prompts, or numbers of prompts, values and keys differ.
    """
    if len(prompt_indices) != len(values):
        raise ValueError(f"{len(prompt_indices)} prompts but {len(values)} values")
    if prompt_keys and len(prompt_keys) != len(values):
        raise ValueError(f"{len(prompt_keys)} prompt keys but {len(values)} values")
    return EvalRecord(
        label=label,
        step=step,
        prompt_indices=tuple(prompt_indices),
        values=tuple(values),
        measure=measure,
        prompt_keys=tuple(prompt_keys),
        samples_per_prompt=samples_per_prompt,
        interval=mean_interval(values, samples_per_prompt=samples_per_prompt),
        metrics=dict(metrics or {}),
        samples=tuple(samples),
    )


class Shared(NamedTuple):
    """This record is a paired difference between two runs, and the number of prompts it is over."""

    difference: Interval
    num_prompts: int


def change(before: EvalRecord, after: EvalRecord) -> Interval | None:
    """Return the mean paired difference after - before of one run, over the prompts both share.

    The held-out prompts of a run stay the same, so their indices name them. The answer is None
    without any.
    """
    found = _paired(before, after, before.prompt_indices, after.prompt_indices)
    return None if found is None else found.difference


def change_between_runs(
    one: EvalRecord, other: EvalRecord, *, keys: Sequence[str], other_keys: Sequence[str]
) -> Shared | None:
    """Return the mean paired difference other - one, over held-out prompts with shared content.

    Args:
        one: An evaluation of one run.
        other: An evaluation of another run.
        keys: A content hash for each prompt of `one`; empty when unknown.
        other_keys: The same of `other`.

    Returns:
        None where nothing is shared or judged by both, or where they measure different things.
    """
    if one.measure is not other.measure or not (keys and other_keys):
        return None
    return _paired(one, other, _numbered(keys), _numbered(other_keys))


def _paired(
    one: EvalRecord,
    other: EvalRecord,
    names: Sequence[Hashable],
    other_names: Sequence[Hashable],
) -> Shared | None:
    known = dict(zip(names, one.values, strict=True))
    pairs = zip(other_names, other.values, strict=True)
    differences = [value - known[name] for name, value in pairs if name in known]
    judged = [difference for difference in differences if not math.isnan(difference)]
    return Shared(bootstrap(judged), len(judged)) if judged else None


def _numbered(keys: Sequence[str]) -> list[tuple[str, int]]:
    """Return the keys with their occurrence, so that each prompt has one partner."""
    seen: Counter[str] = Counter()
    named = []
    for key in keys:
        named.append((key, seen[key]))
        seen[key] += 1
    return named
