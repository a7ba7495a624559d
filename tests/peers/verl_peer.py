"""verl 0.9: the pure functions of its trainer, put together as its actor and critic do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peers.ours import WIDTH, Case
from torch import Tensor

NO_DUAL_CLIP = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlOptions:
    """verl's names; its defaults, except that dual clip is off."""

    loss: str = "vanilla"
    aggregation: str = "token-mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_c: float = NO_DUAL_CLIP
    advantage: str = "grpo"
    scale: bool = True
    """`norm_adv_by_std_in_grpo`."""
    kl_penalty: str | None = None
    """`kl_loss_type` of a KL in the loss; None: no KL in the loss."""
    beta: float = 0.04
    reward_kl: bool = False
    """k1 per token in the reward, as verl's `use_kl_in_reward`."""
    tau_neg: float = 1.05
    weights: str | None = None
    """`rollout_is`: token, sequence or None."""
    threshold: str | float = 2.0
    gamma: float = 1.0
    lam: float = 0.95
    value_clip: float = 0.2
    value_coef: float = 0.0
    """> 0 adds the value loss, which verl steps on its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verl:
    """verl's modules."""

    core: Any
    correction: Any
    actor_config: Any
    algorithm_config: Any

    @staticmethod
    def load() -> Verl:
        """Import verl, once a session: 10 seconds."""
        from verl.trainer.config import AlgoConfig
        from verl.trainer.ppo import core_algos, rollout_corr_helper
        from verl.workers.config import ActorConfig

        return Verl(
            core=core_algos,
            correction=rollout_corr_helper,
            actor_config=ActorConfig,
            algorithm_config=AlgoConfig,
        )

    def advantages(self, options: VerlOptions, case: Case) -> tuple[Tensor, Tensor]:
        """Advantages and returns (B C) from the rewards at the last tokens."""
        rewards, mask = self._token_rewards(options, case), case.mask
        groups = case.rollout.group_ids.numpy()
        match options.advantage:
            case "grpo":
                result = self.core.compute_grpo_outcome_advantage(
                    rewards, mask, groups, norm_adv_by_std_in_grpo=options.scale
                )
            case "rloo":
                result = self.core.compute_rloo_outcome_advantage(rewards, mask, groups)
            case "gae":
                result = self.core.compute_gae_advantage_return(
                    rewards, case.rollout.values, mask, options.gamma, options.lam
                )
            case "reinforce_plus_plus":
                result = self.core.compute_reinforce_plus_plus_outcome_advantage(
                    rewards, mask, config=self.algorithm_config(gamma=options.gamma)
                )
            case "reinforce_plus_plus_baseline":
                result = self.core.compute_reinforce_plus_plus_baseline_outcome_advantage(
                    rewards, mask, groups
                )
            case other:
                raise ValueError(other)
        advantages, returns = result
        return advantages, returns

    def weights(self, options: VerlOptions, case: Case) -> Tensor | None:
        """Rollout correction weights (B C), 0 on padding."""
        if options.weights is None:
            return None
        old, sampling = case.rollout.old_logps, case.rollout.sampling_logps
        assert old is not None
        weights, _ = self.correction.compute_rollout_correction_weights(
            old - sampling,
            case.mask,
            rollout_is=options.weights,
            rollout_is_threshold=options.threshold,
        )
        assert isinstance(weights, Tensor)
        return weights

    def loss(self, options: VerlOptions, case: Case) -> Callable[..., Tensor]:
        """From rewards to the sum of policy, KL and value losses."""
        config = self.actor_config(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio_low=options.clip_low,
            clip_ratio_high=options.clip_high,
            clip_ratio_c=options.clip_c,
            tau_neg=options.tau_neg,
        )
        policy_loss = self.core.get_policy_loss_fn(options.loss)
        rollout, mask = case.rollout, case.mask

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            advantages, returns = self.advantages(options, case)
            total, _ = policy_loss(
                old_log_prob=rollout.old_logps,
                log_prob=logps,
                advantages=advantages,
                response_mask=mask,
                loss_agg_mode=options.aggregation,
                config=config,
                rollout_is_weights=self.weights(options, case),
            )
            if options.kl_penalty is not None:
                kl = self.core.kl_penalty(logps, rollout.ref_logps, options.kl_penalty)
                total = total + options.beta * self.core.agg_loss(kl, mask, options.aggregation)
            if options.value_coef > 0.0:
                critic, _ = self.core.compute_value_loss(
                    values, returns, rollout.values, mask, options.value_clip, options.aggregation
                )
                total = total + options.value_coef * critic
            assert isinstance(total, Tensor)
            return total

        return loss

    def _token_rewards(self, options: VerlOptions, case: Case) -> Tensor:
        rollout = case.rollout
        rewards = torch.zeros(len(rollout), WIDTH, dtype=torch.float64)
        last = rollout.completion_mask.sum(dim=1) - 1
        rewards[torch.arange(len(rollout)), last] = rollout.rewards
        if not options.reward_kl:
            return rewards
        kl: Tensor = self.core.kl_penalty(rollout.old_logps, rollout.ref_logps, "k1")
        return rewards - options.beta * kl * case.mask
