"""These tables hold TRL's defaults, our names of its values, and why some have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "num_generations": 8,
    "max_completion_length": 512,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_server_host": "0.0.0.0",
    "vllm_server_port": 8000,
    "beta": 0.0,
    "num_iterations": 1,
    "epsilon": 0.2,
    "importance_sampling_level": "token",
    "multi_objective_aggregation": "sum_then_normalize",
    "scale_rewards": "group",
    "loss_type": "dapo",
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "use_bias_correction_kl": True,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "optim": "adamw_torch",
}
"""TRL's defaults of the keys that are always converted."""

_SERVED = "the memory plan decides that (docs/memory/plan.md)"
_MULTI = "rlkit has no DeepSpeed, FSDP or tensor parallelism"
REASONS: Mapping[str, str] = {
    "vllm_gpu_memory_utilization": _SERVED,
    "vllm_enable_sleep_mode": _SERVED,
    "vllm_max_model_length": "it follows from task.max_prompt_length and max_completion_length",
    "vllm_tensor_parallel_size": _MULTI,
    "ds3_gather_for_generation": _MULTI,
    "deepspeed": _MULTI,
    "fsdp": _MULTI,
    "fsdp_config": _MULTI,
    "ddp_find_unused_parameters": _MULTI,
    "pad_to_multiple_of": "rlkit packs rows and pads nothing",
    "use_liger_kernel": "rlkit's own kernels need no switch",
    "remove_unused_columns": "task.columns names the columns that rewards see",
    "shuffle_dataset": "the order of rows is a function of the run's seed",
    "reward_weights": "give reward.functions.NAME.weight for each function by its name",
    "reward_funcs": "give +reward.functions.NAME.fn=FILE.py:FUNCTION for each",
    "num_generations_eval": "evaluation.samples_per_prompt is that number",
    "num_train_epochs": "rlkit counts steps: steps = epochs x rows / prompts_per_step",
    "disable_dropout": "rlkit never uses dropout",
    "sync_ref_model": "the reference of rlkit never changes",
    "ref_model_mixup_alpha": "the reference of rlkit never changes",
    "ref_model_sync_steps": "the reference of rlkit never changes",
    "off_policy_mask_threshold": "rlkit masks by ratios only: see correction=sequence_mask",
    "use_adaptive_entropy": "rlkit's coefficient of the entropy is constant",
    "entropy_coef_min": "rlkit's coefficient of the entropy is constant",
    "entropy_coef_max": "rlkit's coefficient of the entropy is constant",
    "entropy_coef_delta": "rlkit's coefficient of the entropy is constant",
    "entropy_target": "rlkit's coefficient of the entropy is constant",
    "max_tool_calling_iterations": "environment.max_turns bounds the turns of an episode",
    "dataset_name": "rows need columns: rlkit task=dataset task.path=... +task.columns.prompt=...",
    "push_to_hub": "rlkit push sends an export afterwards",
    "hub_model_id": "rlkit push sends an export afterwards",
    "run_name": "the run's folder is its name",
}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant"}
OPTIMISERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw8bit"),
    "paged_adamw_8bit": "paged_adamw8bit",
}
AGGREGATIONS = {
    **dict.fromkeys(("grpo", "sapo"), "sequence_mean"),
    **dict.fromkeys(("dapo", "cispo"), "token_mean"),
    "bnpo": "microbatch_token_mean",
    "dr_grpo": "constant_length",
    "luspo": "sequence_sum",
}
SCALES = {
    "group": "group_std",
    "batch": "batch_std",
    "none": "none",
    True: "group_std",
    False: "none",
}
CORRECTIONS = {
    "token_truncate": "token_tis",
    "token_mask": "token_mask",
    "sequence_truncate": "sequence_tis",
    "sequence_mask": "sequence_mask",
}
