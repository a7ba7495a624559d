"""GRPO and everything that differs from it by a switch.

DeepSeekMath, arXiv:2402.03300, section 4.1. As there and in the seed: group z-score, clip 0.2, mean
over tokens of a row and then over rows, k3 in the loss with beta 0.04. Unlike the paper's eq. 3 the
standard deviation has Bessel's correction and 1e-4 added, as in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rlkit.algorithms.advantage import (
    AdvantageConfig,
    Combine,
    Scale,
    check_group_size,
    row_advantages,
)
from rlkit.algorithms.base import (
    Objective,
    PolicyGradientConfig,
    check_setting,
    loss_mask_of,
    shaped_rewards,
)
from rlkit.algorithms.kl import KLPlacement
from rlkit.algorithms.kl_terms import kl_per_token, with_advantage_kl
from rlkit.algorithms.policy_gradient import policy_gradient_loss
from rlkit.functional.advantages import whiten_tokens
from rlkit.functional.masks import keep
from rlkit.types import Algorithm, RolloutBatch, Setting, TrainBatch, with_denominators


@dataclass(kw_only=True, slots=True)
class GRPOConfig(PolicyGradientConfig):
    """Group relative policy optimisation."""

    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Baseline and scale."""


def grpo(cfg: GRPOConfig, objective: Objective, setting: Setting) -> Algorithm:
    """The algorithm of `cfg`; raises `ValueError` on combinations that cannot work."""
    check_setting(cfg, setting)
    check_group_size(cfg.advantage, cfg.group_size)
    in_reward = objective.kl.enabled and objective.kl.placement is KLPlacement.reward
    if cfg.advantage.combine is Combine.normalize_each and (
        in_reward or cfg.overlong_fraction > 0.0
    ):
        raise ValueError(
            "algorithm.advantage.combine=normalize_each ignores what is added to the summed "
            "reward: set kl.placement=loss or advantage and algorithm.overlong_fraction=0"
        )
    loss, needs, outputs = policy_gradient_loss(cfg, objective, setting)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        rewards = shaped_rewards(cfg, setting, rollout)
        if in_reward:
            rewards = rewards - kl_per_token(objective.kl, rollout).sum(dim=1)
        mask = loss_mask_of(cfg, rollout)
        rows: Tensor = row_advantages(cfg.advantage, rollout, rewards)
        advantages = rows[:, None].expand(mask.shape)
        advantages = keep(with_advantage_kl(objective.kl, rollout, advantages), mask)
        if cfg.advantage.scale is Scale.whiten_tokens:
            advantages = whiten_tokens(
                advantages, mask, eps=cfg.advantage.eps, bessel=cfg.advantage.bessel
            )
        return with_denominators(
            TrainBatch(
                rollout=rollout,
                loss_mask=mask,
                advantages=advantages,
                returns=None,
                num_tokens=1,
                num_sequences=1,
            )
        )

    return Algorithm(prepare=prepare, loss=loss, needs=needs, outputs=outputs)
