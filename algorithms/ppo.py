"""PPO with a critic: generalised advantages per token, clipped policy and value losses.

Papers: arXiv:1707.06347 and, for language models, arXiv:1909.08593. The critic's value before each
token comes in as `PolicyOutput.values`, its value at rollout time as the column `values`. With
`kl.placement=reward` the penalty is a reward per token and goes through the advantage estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.algorithms.objective.aggregation import Aggregation, aggregate_of
from rlkit.algorithms.objective.base import (
    Objective,
    check_setting,
    loss_mask_of,
    token_rewards,
)
from rlkit.algorithms.objective.critic import value_objective
from rlkit.algorithms.objective.kl_terms import kl_per_token, with_advantage_kl
from rlkit.algorithms.objective.policy_gradient import PolicyGradientConfig, policy_gradient_loss
from rlkit.functional import gae, keep, whiten_tokens
from rlkit.types import (
    Algorithm,
    Column,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    RolloutBatch,
    Setting,
    TrainBatch,
    Warmup,
)


@dataclass(kw_only=True, slots=True)
class PPOConfig(PolicyGradientConfig):
    """These are the options of proximal policy optimisation."""

    aggregation: Aggregation = Aggregation.token_mean
    """The same values as elsewhere; also used for the value loss. TRL and verl: token_mean."""
    gamma: float = 1.0
    """Discount per sampled token, in (0, 1]. TRL: 1."""
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


def ppo(objective: Objective[PPOConfig], setting: Setting) -> Algorithm:
    """Build PPO for a run with these facts; raises ValueError on combinations that cannot work."""
    cfg, kl = objective.algorithm, objective.kl
    check_setting(cfg, setting)
    policy = policy_gradient_loss(objective, setting)
    aggregate = aggregate_of(cfg.aggregation, setting)
    critic_loss = value_objective(aggregate, clip=cfg.value_clip, coefficient=cfg.value_coef)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        """Return advantages and value targets per token; rows without a reward leave the loss."""
        if rollout.values is None:
            raise ValueError("ppo needs RolloutBatch.values")
        sampled, scored = rollout.completion_mask, ~rollout.rewards.isnan()
        mask = loss_mask_of(cfg, rollout) & scored[:, None]
        rewards = token_rewards(cfg, setting, rollout)
        if kl.in_reward:
            rewards = rewards - kl_per_token(kl, rollout)
        estimate = gae(rewards, rollout.values, sampled, gamma=cfg.gamma, lam=cfg.lam)
        advantages = with_advantage_kl(kl, rollout, estimate.advantages)
        if cfg.whiten:
            advantages = whiten_tokens(keep(advantages, mask), mask, eps=1e-8, bessel=True)
        return TrainBatch.prepared(
            rollout, loss_mask=mask, advantages=advantages, returns=estimate.returns
        )

    def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
        """Return the sum of the policy's loss and the critic's."""
        of_policy, of_critic = policy.loss(out, batch), critic_loss(out, batch)
        return LossOutput(of_policy.loss + of_critic.loss, of_policy.metrics | of_critic.metrics)

    steps = cfg.value_pretrain_steps
    return Algorithm(
        prepare=prepare,
        loss=loss,
        needs=policy.needs | {Column.values},
        outputs=policy.outputs._replace(values=True),
        critic_rate=cfg.value_lr,
        warmup=Warmup(steps, critic_loss, OutputSpec(values=True)) if steps > 0 else None,
    )
