"""RLOO: REINFORCE with the mean of the group's other rewards as baseline.

Paper: arXiv:2402.14740, eq. 8. As in TRL, KL (k1) is in the reward, before the baseline, and one
ratio is for the whole completion (`ratio=sequence`). `ratio=token` with
`algorithm.aggregation=sequence_sum` has the same gradient on-policy. Everything but the baseline is
GRPO's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlkit.algorithms.grpo import GRPOConfig, grpo
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.base import Objective
from rlkit.types import Algorithm, Setting


def _leave_one_out() -> AdvantageConfig:
    return AdvantageConfig(baseline=Baseline.leave_one_out, scale=Scale.none)


@dataclass(kw_only=True, slots=True)
class RLOOConfig(GRPOConfig):
    """REINFORCE leave-one-out."""

    advantage: AdvantageConfig = field(default_factory=_leave_one_out)
    """Leave-one-out baseline; scale=whiten is TRL's normalize_advantages."""


def rloo(objective: Objective[RLOOConfig], setting: Setting) -> Algorithm:
    """Build RLOO for a run with these facts; raises ValueError on combinations that cannot work."""
    baseline = objective.algorithm.advantage.baseline
    if baseline is not Baseline.leave_one_out:
        raise ValueError(
            "algorithm.advantage.baseline must be leave_one_out with algorithm=rloo, got "
            f"{baseline}; use algorithm=grpo for other baselines"
        )
    return grpo(objective, setting)
