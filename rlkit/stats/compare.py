"""Each variant meets the baseline in a paired difference, Holm-adjusted tests and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from rlkit.stats.bootstrap import MIN_SEEDS, Estimate, estimate
from rlkit.stats.paired import holm, paired_t, tost

ALPHA = 0.05


class Verdict(StrEnum):
    """The seeds allow this conclusion about a variant and the baseline."""

    similar = "similar"
    """TOST: the mean difference lies within the margin, whether or not it is 0."""
    above = "higher"
    """The mean difference is above 0, and not shown to lie within the margin."""
    below = "lower"
    inconclusive = "inconclusive"
    """Neither a difference nor similarity is shown."""
    too_few = "too few seeds"


class Paired(NamedTuple):
    """This record pairs values of a variant and of the baseline by seed, in one order."""

    values: Sequence[float]
    baseline: Sequence[float]

    @property
    def differences(self) -> list[float]:
        return [a - b for a, b in zip(self.values, self.baseline, strict=True)]


class Comparison(NamedTuple):
    """A comparison has Holm-adjusted p-values, which are None with too few seeds."""

    difference: Estimate
    p_different: float | None
    """Small: the mean difference is not 0."""
    p_outside: float | None
    """Small: the mean difference is within the margin."""
    verdict: Verdict


def compare_all(pairs: Mapping[str, Paired], *, margin: float) -> dict[str, Comparison]:
    """Compare each variant of one family with the baseline.

    Differences are tested by paired t tests, similarity by TOST at ±`margin`. Both families of
    p-values are Holm-adjusted over the variants that have at least `MIN_SEEDS` pairs.

    Raises:
        ValueError: `margin` <= 0, pairs of other lengths, no pairs, or a value that is not finite.
    """
    differences = {name: pair.differences for name, pair in pairs.items()}
    tested = [name for name, values in differences.items() if len(values) >= MIN_SEEDS]
    different = holm([paired_t(differences[name]) for name in tested])
    outside = holm([tost(differences[name], margin=margin) for name in tested])
    found = {}
    for name, values in differences.items():
        mean = estimate(values)
        if name not in tested:
            found[name] = Comparison(mean, None, None, Verdict.too_few)
            continue
        index = tested.index(name)
        p, q = different[index], outside[index]
        found[name] = Comparison(mean, p, q, _verdict(mean.mean, p, q))
    return found


def _verdict(difference: float, p_different: float, p_outside: float) -> Verdict:
    if p_outside < ALPHA:
        return Verdict.similar
    if p_different < ALPHA:
        return Verdict.above if difference > 0 else Verdict.below
    return Verdict.inconclusive
