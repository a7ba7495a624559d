"""These tables hold verl's defaults, our names of its values, and why some have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
MODEL, CORRECTION = "actor_rollout_ref.model.", "algorithm.rollout_correction."

DEFAULTS: Mapping[str, Any] = {
    "data.train_batch_size": 1024,
    "data.max_prompt_length": 512,
    "data.max_response_length": 512,
    "data.truncation": "error",
    "data.prompt_key": "prompt",
    "algorithm.adv_estimator": "gae",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.gamma": 1.0,
    "algorithm.lam": 1.0,
    "algorithm.use_kl_in_reward": False,
    "algorithm.kl_penalty": "kl",
    "algorithm.kl_ctrl.type": "fixed",
    "algorithm.kl_ctrl.kl_coef": 0.001,
    f"{CORRECTION}rollout_is_threshold": 2.0,
    f"{ACTOR}ppo_mini_batch_size": 256,
    f"{ACTOR}ppo_epochs": 1,
    f"{ACTOR}clip_ratio": 0.2,
    f"{ACTOR}clip_ratio_low": 0.2,
    f"{ACTOR}clip_ratio_high": 0.2,
    f"{ACTOR}clip_ratio_c": 3.0,
    f"{ACTOR}tau_pos": 1.0,
    f"{ACTOR}tau_neg": 1.05,
    f"{ACTOR}policy_loss.loss_mode": "vanilla",
    f"{ACTOR}loss_agg_mode": "token-mean",
    f"{ACTOR}entropy_coeff": 0,
    f"{ACTOR}use_kl_loss": False,
    f"{ACTOR}kl_loss_coef": 0.001,
    f"{ACTOR}kl_loss_type": "low_var_kl",
    f"{ACTOR}optim.lr": 1e-6,
    f"{ACTOR}optim.weight_decay": 0.01,
    f"{ACTOR}optim.lr_scheduler_type": "constant",
    f"{ACTOR}optim.lr_warmup_steps": -1,
    f"{ACTOR}optim.lr_warmup_steps_ratio": 0.0,
    f"{ACTOR}optim.betas": [0.9, 0.999],
    f"{ACTOR}optim.clip_grad": 1.0,
    "critic.optim.lr": 1e-5,
    "critic.cliprange_value": 0.5,
    "trainer.critic_warmup": 0,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.save_freq": -1,
    "trainer.test_freq": -1,
    f"{ROLLOUT}n": 1,
    f"{ROLLOUT}name": "vllm",
    f"{ROLLOUT}temperature": 1.0,
    f"{ROLLOUT}top_p": 1,
    f"{ROLLOUT}top_k": -1,
    f"{MODEL}lora_rank": 0,
    f"{MODEL}lora_alpha": 16,
    f"{MODEL}target_modules": "all-linear",
}
"""verl's defaults of the keys that are always converted."""

_PLAN = "the memory plan decides that (docs/memory/plan.md)"
_SPLIT = "the memory plan splits batches; no gradient depends on it"
_MULTI = "rlkit shards no model: gpus=N runs N whole copies"
REASONS: Mapping[str, str] = {
    f"{ACTOR}fsdp_config": _MULTI,
    f"{ACTOR}megatron": _MULTI,
    f"{ACTOR}ulysses_sequence_parallel_size": _MULTI,
    f"{ACTOR}strategy": _MULTI,
    f"{ACTOR}ppo_micro_batch_size": _SPLIT,
    f"{ACTOR}ppo_micro_batch_size_per_gpu": _SPLIT,
    f"{ACTOR}ppo_max_token_len_per_gpu": _SPLIT,
    f"{ACTOR}use_dynamic_bsz": _SPLIT,
    f"{ACTOR}clip_ratio": "verl itself ignores it where clip_ratio_low and clip_ratio_high are set",
    f"{ACTOR}profiler": "rlkit has no profiler",
    f"{ACTOR}checkpoint": "a checkpoint of rlkit has all that an exact resume needs",
    "actor_rollout_ref.ref": "the reference is the model at the start of the run",
    f"{ROLLOUT}gpu_memory_utilization": _PLAN,
    f"{ROLLOUT}max_num_batched_tokens": _PLAN,
    f"{ROLLOUT}max_num_seqs": _PLAN,
    f"{ROLLOUT}max_model_len": _PLAN,
    f"{ROLLOUT}enforce_eager": _PLAN,
    f"{ROLLOUT}free_cache_engine": _PLAN,
    f"{ROLLOUT}log_prob_micro_batch_size": _SPLIT,
    f"{ROLLOUT}log_prob_micro_batch_size_per_gpu": _SPLIT,
    f"{ROLLOUT}tensor_model_parallel_size": _MULTI,
    f"{ROLLOUT}multi_turn": "environments are classes: environment.fn=FILE.py:CLASS",
    f"{ROLLOUT}agent": "environments are classes: environment.fn=FILE.py:CLASS",
    f"{ROLLOUT}val_kwargs": "rlkit evaluates at the training temperature",
    f"{CORRECTION}rollout_rs": "rlkit rejects by weights: see correction=sequence_mask",
    f"{MODEL}use_remove_padding": "rlkit packs rows and pads nothing",
    f"{MODEL}use_fused_kernels": "rlkit's own kernels need no switch",
    f"{MODEL}enable_activation_offload": _PLAN,
    "critic": "the critic is an adapter on the policy's frozen base",
    "data.shuffle": "the order of rows is a function of the run's seed",
    "data.seed": "the run's seed decides the order of rows",
    "data.reward_fn_key": "reward functions are named: +reward.functions.NAME.fn=...",
    "reward": "reward functions are named: +reward.functions.NAME.fn=FILE.py:FUNCTION",
    "custom_reward_function": "verl's signature is another: see docs/rewards.md",
    "reward_model": "a reward model is a reward function: fn: reward_model (docs/judges.md)",
    "trainer.total_epochs": "rlkit counts steps: steps = epochs x rows / prompts_per_step",
    "trainer.val_before_train": "rlkit always evaluates before and after training",
    "trainer.balance_batch": _SPLIT,
    "trainer.experiment_name": "the run's folder is its name",
    "ray_kwargs": "rlkit does not use Ray inside a run",
}
ESTIMATORS = {
    "gae": "ppo",
    "grpo": "grpo",
    "grpo_vectorized": "grpo",
    "rloo": "rloo_token",
    "rloo_vectorized": "rloo_token",
    "reinforce_plus_plus": "reinforce_pp",
}
AGGREGATIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum-norm": "constant_length",
}
KL_TYPES = {
    **dict.fromkeys(("kl", "k1"), "k1"),
    **dict.fromkeys(("mse", "k2"), "k2"),
    **dict.fromkeys(("low_var_kl", "k3"), "k3"),
}
