"""TRL 1.16: its trainers' own code from rewards to loss, on stand-ins for model and generator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from peers.ours import END, WIDTH, Case, sum_of
from peers.trl_stand_ins import (
    POLICY,
    REFERENCE,
    Model,
    OneProcess,
    answers,
    generated,
    prompts,
    ragged,
    trainer_state,
)
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPOOptions:
    """TRL's names and defaults, except for `num_iterations` (2, so that old logps are stored)."""

    loss_type: str = "grpo"
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    importance_sampling_level: str = "token"
    use_bias_correction_kl: bool = True
    scale_rewards: str = "group"
    multi_objective_aggregation: str = "sum_then_normalize"
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0
    mask_truncated_completions: bool = False
    num_iterations: int = 2
    is_mode: str | None = None
    """`vllm_importance_sampling_mode`; None switches the correction off."""
    is_min: float | None = None
    is_max: float | None = None
    sapo_temperature_neg: float = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineDPOOptions:
    """TRL's names and defaults."""

    beta: float = 0.1
    loss_type: str = "sigmoid"
    missing_eos_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TRL:
    """The trainers' classes; the trainers themselves would need a model and a data set."""

    grpo: Any
    gmpo: Any
    rloo: Any
    online_dpo: Any
    overlong: Any

    @staticmethod
    def load() -> TRL:
        """Import TRL, once a session: 10 seconds."""
        from trl.experimental.gmpo import GMPOTrainer
        from trl.experimental.online_dpo import OnlineDPOTrainer
        from trl.rewards import get_soft_overlong_punishment
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer

        return TRL(
            grpo=GRPOTrainer,
            gmpo=GMPOTrainer,
            rloo=RLOOTrainer,
            online_dpo=OnlineDPOTrainer,
            overlong=get_soft_overlong_punishment,
        )

    def grpo_loss(
        self, options: GRPOOptions, case: Case, *, splits: int = 1, gmpo: bool = False
    ) -> Callable[..., Tensor]:
        """Loss from rewards to scalar, summed over `splits` micro-batches of one step."""
        trainer = self.gmpo if gmpo else self.grpo

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            state = grpo_state(trainer, options, case, splits)
            scored = trainer._generate_and_score_completions(state, prompts(case.rollout))
            parts = []
            for rows in torch.arange(len(case.rollout)).chunk(splits):
                state._get_per_token_logps_and_entropies = answers(
                    (logps[rows], entropy[rows], None)
                )
                inputs = {
                    k: v[rows] if isinstance(v, Tensor) and v.dim() > 0 else v
                    for k, v in scored.items()
                }
                parts.append(trainer._compute_loss(state, state.model, inputs))
            return sum_of(parts)

        return loss

    def grpo_metrics(self, options: GRPOOptions, case: Case) -> dict[str, float]:
        """What GRPOTrainer logs for one batch."""
        state = grpo_state(self.grpo, options, case, splits=1)
        scored = self.grpo._generate_and_score_completions(state, prompts(case.rollout))
        state._get_per_token_logps_and_entropies = answers((case.logps, case.entropy, None))
        self.grpo._compute_loss(state, state.model, scored)
        return {name: numbers[-1] for name, numbers in state._metrics["train"].items() if numbers}

    def rloo_loss(
        self, case: Case, *, beta: float, normalize_advantages: bool
    ) -> Callable[..., Tensor]:
        """RLOOTrainer from rewards to loss."""

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            state = trainer_state(
                case,
                beta=beta,
                normalize_advantages=normalize_advantages,
                epsilon_low=0.2,
                epsilon_high=0.2,
                reward_clip_range=None,
                _generate=answers((*generated(case.rollout), [""] * len(case.rollout))),
            )
            scored = self.rloo._generate_and_score_completions(state, prompts(case.rollout))
            state._get_per_token_logps_and_entropies = answers((logps, entropy, None))
            return _tensor(self.rloo._compute_loss(state, state.model, scored))

        return loss

    def online_dpo_loss(self, options: OnlineDPOOptions, case: Case) -> Callable[..., Tensor]:
        """OnlineDPOTrainer.training_step, its backward pass replaced by returning the loss.

        TRL keeps the first completions of all prompts before the second ones.
        """
        rollout = case.rollout
        order = torch.arange(len(rollout)).view(-1, 2).T.flatten()

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            kept: list[Tensor] = []
            accelerator = OneProcess()
            accelerator.backward = kept.append  # type: ignore[attr-defined]
            columns = {POLICY: logps[order], REFERENCE: _tensor(rollout.ref_logps)[order]}
            state = SimpleNamespace(
                accelerator=accelerator,
                model=Model(POLICY),
                ref_model=Model(REFERENCE),
                beta=options.beta,
                eos_token_ids=[END],
                reward_funcs=[None],
                stats=defaultdict(list),
                state=SimpleNamespace(global_step=0),
                processing_class=SimpleNamespace(batch_decode=answers([""] * len(rollout))),
                args=SimpleNamespace(
                    use_vllm=False,
                    missing_eos_penalty=options.missing_eos_penalty,
                    loss_type=options.loss_type,
                    torch_empty_cache_steps=None,
                    optim="adamw_torch",
                    n_gpu=1,
                    gradient_accumulation_steps=1,
                ),
                _generate=answers(
                    (
                        rollout.prompt_ids[order],
                        rollout.prompt_mask[order],
                        rollout.completion_ids[order],
                        rollout.completion_mask[order].long(),
                        None,
                    )
                ),
                _forward=lambda model, *inputs: columns[model.name],
                _calculate_rewards_from_functions=answers(rollout.rewards[order].clone()),
            )
            prompt_batch = {"prompt": [""] * (len(rollout) // 2)}
            self.online_dpo.training_step(state, state.model, prompt_batch)
            return kept[0]

        return loss


def grpo_state(trainer: Any, options: GRPOOptions, case: Case, splits: int) -> SimpleNamespace:
    """The attributes that GRPOTrainer's scoring and loss read."""
    corrected = options.is_mode is not None
    sampling = ragged(case.rollout.sampling_logps, case.rollout) if corrected else None
    texts: list[str] = [""] * len(case.rollout)
    state = trainer_state(
        case,
        splits=splits,
        loss_type=options.loss_type,
        beta=options.beta,
        epsilon_low=options.epsilon,
        epsilon_high=options.epsilon_high,
        importance_sampling_level=options.importance_sampling_level,
        scale_rewards=options.scale_rewards,
        multi_objective_aggregation=options.multi_objective_aggregation,
        entropy_coef=options.entropy_coef,
        _entropy_bonus_enabled=options.entropy_coef != 0.0,
        use_adaptive_entropy=False,
        top_entropy_quantile=options.top_entropy_quantile,
        off_policy_mask_threshold=None,
        mask_truncated_completions=options.mask_truncated_completions,
        num_iterations=options.num_iterations,
        max_completion_length=WIDTH,
        current_gradient_accumulation_steps=splits,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        vllm_importance_sampling_mode=options.is_mode,
        vllm_importance_sampling_clip_min=options.is_min,
        vllm_importance_sampling_clip_max=options.is_max,
        _generate=answers((*generated(case.rollout), None, texts, sampling, {}, None, None)),
    )
    state.args.delta = options.delta
    state.args.use_bias_correction_kl = options.use_bias_correction_kl
    state.args.sapo_temperature_pos = 1.0
    state.args.sapo_temperature_neg = options.sapo_temperature_neg
    state.get_high_entropy_mask = MethodType(trainer.get_high_entropy_mask, state)
    return state


def _tensor(x: Tensor | None) -> Tensor:
    assert isinstance(x, Tensor)
    return x
