"""Several samples of a prompt say more than their mean: one of k is right, or most of them are.

Each number is a mean over prompts with a 95% interval over prompts, as that of the success itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

from rlkit.tracking.intervals import mean_interval


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the chance that one of k samples, drawn without replacement, is right.

    It is 1 - C(n - c, k) / C(n, k), which is unbiased for 1 - (1 - p)^k. Source: Chen et al. 2021,
    arXiv:2107.03374, eq. 1.

    Raises:
        ValueError: `k` is not in [1, num_samples], or `num_right` not in [0, num_samples].
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(
            f"k must be in [1, {num_samples}] and num_right in [0, {num_samples}], got {k} and "
            f"{num_right}"
        )
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority(values: Sequence[float], answers: Sequence[Hashable | None]) -> float:
    """Return the value of the answer that most samples give.

    Samples without an answer do not vote. Ties share: two answers, one of them right, give 0.5.

    Args:
        values: 1 for a right sample, 0 for a wrong one.
        answers: What each sample votes for; None = nothing.

    Returns:
        A number in [0, 1]; 0 when nobody votes.
    """
    votes: dict[Hashable, list[float]] = defaultdict(list)
    for value, answer in zip(values, answers, strict=True):
        if answer is not None:
            votes[answer].append(value)
    most = max(map(len, votes.values()), default=0)
    winners = [found for found in votes.values() if len(found) == most]
    return math.fsum(math.fsum(w) / most for w in winners) / len(winners) if most else 0.0


def repeated_metrics(
    values: Sequence[Sequence[float]], answers: Sequence[Sequence[Hashable | None]] | None
) -> dict[str, float]:
    """Return `pass@k` for k = 2, 4, 8 and so on up to the number of samples n, and `maj@n`.

    Each has its interval as `NAME/low` and `NAME/high`. One sample a prompt gives nothing: its
    pass@1 is the success.

    Args:
        values: 0 or 1 for each prompt's samples, as many for each prompt.
        answers: What each of them votes for; None = the task cannot know.

    Returns:
        The numbers by name.
    """
    n = min(map(len, values), default=0)
    if n < 2 or any(len(group) != n for group in values):
        return {}
    sizes = sorted({n, *(2**i for i in range(1, n.bit_length()) if 2**i <= n)})
    found = {
        f"pass@{k}": [pass_at_k(n, round(math.fsum(group)), k) for group in values] for k in sizes
    }
    if answers is not None:
        found[f"maj@{n}"] = [majority(*pair) for pair in zip(values, answers, strict=True)]
    metrics: dict[str, float] = {}
    for name, means in found.items():
        interval = mean_interval(means, samples_per_prompt=n)
        metrics |= {name: interval.mean, f"{name}/low": interval.low, f"{name}/high": interval.high}
    return metrics
