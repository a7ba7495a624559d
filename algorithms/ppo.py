"""PPO with a critic: generalised advantages per token, clipped policy and value losses.

arXiv:1707.06347 and, for language models, arXiv:1909.08593. The critic's value before each token
comes in as `PolicyOutput.values`; its rollout-time value as the column `values`. With
`kl.placement=reward` the penalty is a reward per token and goes through the advantage estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.algorithms.aggregation import Aggregation, aggregate_of
from rlkit.algorithms.base import (
    Objective,
    PolicyGradientConfig,
    check_setting,
    loss_mask_of,
    shaped_rewards,
)
from rlkit.algorithms.critic import value_objective
from rlkit.algorithms.kl import KLPlacement
from rlkit.algorithms.kl_terms import kl_per_token, with_advantage_kl
from rlkit.algorithms.policy_gradient import Loss, policy_gradient_loss
from rlkit.functional.advantages import whiten_tokens
from rlkit.functional.masks import keep
from rlkit.functional.values import gae, terminal_rewards
from rlkit.types import (
    Algorithm,
    Column,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    RolloutBatch,
    Setting,
    TrainBatch,
    with_denominators,
)


@dataclass(kw_only=True, slots=True)
class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimisation."""

    aggregation: Aggregation = Aggregation.token_mean
    """As in `PolicyGradientConfig`; also used for the value loss. TRL and verl: token_mean."""
    gamma: float = 1.0
    """Discount per token, in (0, 1]. TRL: 1."""
    lam: float = 0.95
    """Trace decay of the advantage estimate, in [0, 1]. TRL: 0.95; 1 is unbiased."""
    whiten: bool = True
    """z-score the advantages over the batch's tokens (eps 1e-8, Bessel), as TRL; verl adds eps to
    the variance."""
    value_coef: float = 0.1
    """Coefficient of the value loss, > 0. TRL: 0.1."""
    value_clip: float | None = 0.2
    """Half width of the value's trust interval, > 0; null = off. TRL: 0.2, verl: 0.5."""
    value_lr: float = 1e-4
    """Learning rate of the critic's parameters, > 0."""
    value_pretrain_steps: int = 0
    """Steps at the start in which only the critic learns, >= 0."""

    def check(self) -> None:
        PolicyGradientConfig.check(self)
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"algorithm.gamma must be in (0, 1], got {self.gamma}")
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"algorithm.lam must be in [0, 1], got {self.lam}")
        for name in ("value_coef", "value_lr"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"algorithm.{name} must be > 0, got {getattr(self, name)}")
        if self.value_clip is not None and not self.value_clip > 0.0:
            raise ValueError(f"algorithm.value_clip must be > 0 or null, got {self.value_clip}")
        if self.value_pretrain_steps < 0:
            raise ValueError(
                f"algorithm.value_pretrain_steps must be >= 0, got {self.value_pretrain_steps}"
            )


def ppo(cfg: PPOConfig, objective: Objective, setting: Setting) -> Algorithm:
    """The algorithm of `cfg`; raises `ValueError` on combinations that cannot work."""
    check_setting(cfg, setting)
    policy_loss, needs, outputs = policy_gradient_loss(cfg, objective, setting)
    critic_loss = _critic_loss(cfg, setting)

    def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
        policy, critic = policy_loss(out, batch), critic_loss(out, batch)
        return LossOutput(policy.loss + critic.loss, policy.metrics | critic.metrics)

    return Algorithm(
        prepare=lambda rollout: prepare(cfg, objective, setting, rollout),
        loss=loss,
        needs=needs | {Column.values},
        outputs=outputs._replace(values=True),
    )


def critic_only(cfg: PPOConfig, objective: Objective, setting: Setting) -> Algorithm:
    """PPO whose loss is the value loss alone: the algorithm of `value_pretrain_steps`."""
    return ppo(cfg, objective, setting)._replace(
        loss=_critic_loss(cfg, setting), outputs=OutputSpec(values=True)
    )


def _critic_loss(cfg: PPOConfig, setting: Setting) -> Loss:
    aggregate = aggregate_of(cfg.aggregation, setting)
    return value_objective(aggregate, clip=cfg.value_clip, coefficient=cfg.value_coef)


def prepare(
    cfg: PPOConfig, objective: Objective, setting: Setting, rollout: RolloutBatch
) -> TrainBatch:
    """Advantages and value targets per token; rows without a reward leave the loss."""
    if rollout.values is None:
        raise ValueError("ppo needs RolloutBatch.values")
    scored = ~rollout.rewards.isnan()
    mask = loss_mask_of(cfg, rollout) & scored[:, None]
    rewards = terminal_rewards(shaped_rewards(cfg, setting, rollout), rollout.completion_mask)
    if objective.kl.enabled and objective.kl.placement is KLPlacement.reward:
        rewards = rewards - kl_per_token(objective.kl, rollout)
    estimate = gae(rewards, rollout.values, rollout.completion_mask, gamma=cfg.gamma, lam=cfg.lam)
    advantages = keep(with_advantage_kl(objective.kl, rollout, estimate.advantages), mask)
    if cfg.whiten:
        advantages = whiten_tokens(advantages, mask, eps=1e-8, bessel=True)
    return with_denominators(
        TrainBatch(
            rollout=rollout,
            loss_mask=mask,
            advantages=advantages,
            returns=keep(estimate.returns, mask),
            num_tokens=1,
            num_sequences=1,
        )
    )
