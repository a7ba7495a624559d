"""This package has statistics of experiments whose unit is the seed; results are reproducible."""

from rlkit.stats.aggregate import (
    iqm,
    stratified_improvement,
    stratified_iqm,
)
from rlkit.stats.bootstrap import MIN_SEEDS, Estimate, estimate, mean_band, paired_estimate
from rlkit.stats.compare import Comparison, Paired, Verdict, compare_all
from rlkit.stats.paired import holm, paired_t, tost

__all__ = [
    "MIN_SEEDS",
    "Comparison",
    "Estimate",
    "Paired",
    "Verdict",
    "compare_all",
    "estimate",
    "holm",
    "iqm",
    "mean_band",
    "paired_estimate",
    "paired_t",
    "stratified_improvement",
    "stratified_iqm",
    "tost",
]
