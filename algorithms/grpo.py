"""This is GRPO, and everything that differs from it by a switch.

Paper: DeepSeekMath, arXiv:2402.03300, section 4.1. As there: group z-score, clip 0.2, mean over
the tokens of a row and then over rows, k3 in the loss with beta 0.04. Unlike the paper's eq. 3 the
standard deviation has Bessel's correction and 1e-4 added, as in TRL.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlkit.algorithms.objective.advantage import (
    AdvantageConfig,
    Combine,
    Scale,
    TurnCredit,
    check_group_size,
    row_advantages,
    turn_advantages,
)
from rlkit.algorithms.objective.base import (
    Objective,
    check_setting,
    loss_mask_of,
    shaped_rewards,
    token_rewards,
)
from rlkit.algorithms.objective.kl_terms import kl_per_token, with_advantage_kl
from rlkit.algorithms.objective.policy_gradient import PolicyGradientConfig, policy_gradient_loss
from rlkit.algorithms.objective.ratio import RatioLevel
from rlkit.functional import keep, whiten_tokens
from rlkit.types import Algorithm, RolloutBatch, Setting, TrainBatch


@dataclass(kw_only=True, slots=True)
class GRPOConfig(PolicyGradientConfig):
    """Group relative policy optimisation."""

    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Baseline and scale."""


def grpo(objective: Objective[GRPOConfig], setting: Setting) -> Algorithm:
    """Build GRPO for a run with these facts; raises ValueError on combinations that cannot work."""
    cfg, kl = objective.algorithm, objective.kl
    check_setting(cfg, setting)
    check_group_size(cfg.advantage, cfg.group_size)
    _check_combine(objective)
    _check_turns(objective)
    policy = policy_gradient_loss(objective, setting)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        """Return one advantage a row or a turn, for all its tokens unless the KL enters there."""
        mask = loss_mask_of(cfg, rollout)
        if cfg.advantage.turns is TurnCredit.trajectory:
            rewards = shaped_rewards(cfg, setting, rollout)
            if kl.in_reward:
                rewards = rewards - kl_per_token(kl, rollout).sum(dim=1)
            rows = row_advantages(cfg.advantage, rollout, rewards)
            advantages = rows[:, None].expand(mask.shape)
        else:
            rewards = token_rewards(cfg, setting, rollout)
            if kl.in_reward:
                rewards = rewards - kl_per_token(kl, rollout)
            advantages = turn_advantages(cfg.advantage, rollout, rewards)
        advantages = with_advantage_kl(kl, rollout, advantages)
        if cfg.advantage.scale is Scale.whiten_tokens:
            eps, bessel = cfg.advantage.eps, cfg.advantage.bessel
            advantages = whiten_tokens(keep(advantages, mask), mask, eps=eps, bessel=bessel)
        return TrainBatch.prepared(rollout, loss_mask=mask, advantages=advantages)

    return Algorithm(
        prepare=prepare,
        loss=policy.loss,
        needs=policy.needs,
        outputs=policy.outputs,
        idle=policy.idle,
    )


def _check_combine(objective: Objective[GRPOConfig]) -> None:
    cfg = objective.algorithm
    if cfg.advantage.combine is Combine.normalize_each and (
        objective.kl.in_reward or cfg.overlong_fraction > 0.0
    ):
        raise ValueError(
            "algorithm.advantage.combine=normalize_each ignores what is added to the summed "
            "reward: set kl.placement=loss or advantage and algorithm.overlong_fraction=0"
        )


def _check_turns(objective: Objective[GRPOConfig]) -> None:
    turns, level = objective.algorithm.advantage.turns, objective.ratio.level
    one_for_all = level in (RatioLevel.sequence, RatioLevel.sequence_mean)
    if turns is not TurnCredit.trajectory and one_for_all:
        raise ValueError(
            f"ratio.level must be token or sequence_mean_token with algorithm.advantage.turns="
            f"{turns}, got {level}: one ratio for the whole row credits every turn alike"
        )
