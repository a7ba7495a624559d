"""Configuration of online DPO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlkit.algorithms.base import AlgorithmConfig
from rlkit.algorithms.pairs import PairRule, TieRule


class PreferenceLoss(StrEnum):
    """Loss of a pair's margin; formulas in `rlkit.functional.preference`."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


@dataclass(kw_only=True, slots=True)
class OnlineDPOConfig(AlgorithmConfig):
    """Direct preference optimisation on the policy's own samples."""

    beta: float = 0.1
    """Strength of the implicit KL to the reference, > 0. DPO and TRL: 0.1."""
    loss: PreferenceLoss = PreferenceLoss.sigmoid
    """sigmoid (DPO); ipo; hinge."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong, in [0, 0.5); loss=sigmoid only (conservative DPO)."""
    pairs: PairRule = PairRule.best_worst
    """best_worst: one pair a group; ranked: best with worst, second with second worst, ...;
    neighbours: rows 0 and 1, 2 and 3, ... (TRL, which has 2 rows)."""
    ties: TieRule = TieRule.drop
    """drop: equal rewards teach nothing; first: the earlier row is chosen and trained on (TRL)."""
    min_gap: float = 0.0
    """A pair whose rewards differ by at most this is a tie, >= 0."""
    missing_eos_penalty: float = 0.0
    """Taken from the reward of completions that hit the length limit, >= 0. TRL: off."""
    xpo_alpha: float = 0.0
    """Coefficient of XPO's optimism, >= 0; 0 = off. TRL's XPO: 1e-5."""
    xpo_max_weight: float = 10.0
    """Cap of the weight ref/sampler that stands in for samples of the reference, > 0."""

    def check(self) -> None:
        AlgorithmConfig.check(self)
        if not 0.0 < self.beta < float("inf"):
            raise ValueError(f"algorithm.beta must be > 0, got {self.beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"algorithm.label_smoothing must be in [0, 0.5), got {self.label_smoothing}"
            )
        if self.label_smoothing > 0.0 and self.loss is not PreferenceLoss.sigmoid:
            raise ValueError(
                f"algorithm.label_smoothing has no effect with algorithm.loss={self.loss}; "
                "set algorithm.loss=sigmoid or label_smoothing=0"
            )
        for name in ("min_gap", "missing_eos_penalty", "xpo_alpha"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"algorithm.{name} must be >= 0, got {getattr(self, name)}")
        if not self.xpo_max_weight > 0.0:
            raise ValueError(f"algorithm.xpo_max_weight must be > 0, got {self.xpo_max_weight}")
