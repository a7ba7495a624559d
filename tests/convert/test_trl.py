"""TRL's GRPOConfig as options of rlkit, against values worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.config import Config, flatten
from rlkit.convert.base import written
from rlkit.convert.read import read
from rlkit.convert.trl import convert
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight

# Every field that GRPOConfig of TRL 1.16.0 adds to TrainingArguments, with a value that no default
# has, and some fields of TrainingArguments, ModelConfig and LoraConfig.
FIELDS: dict[str, object] = {
    "learning_rate": 3e-5,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "trust_remote_code": True,
    "router_aux_loss_coef": 0.1,
    "disable_dropout": True,
    "cast_lm_head_to_fp32": True,
    "remove_unused_columns": True,
    "num_generations": 4,
    "num_generations_eval": 2,
    "max_completion_length": 100,
    "ds3_gather_for_generation": False,
    "shuffle_dataset": False,
    "pad_to_multiple_of": 8,
    "generation_batch_size": 32,
    "steps_per_generation": 4,
    "temperature": 0.9,
    "top_p": 0.95,
    "top_k": 40,
    "min_p": 0.1,
    "generation_kwargs": {"x": 1},
    "chat_template_kwargs": {"enable_thinking": False},
    "repetition_penalty": 1.1,
    "cache_implementation": "static",
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_model_impl": "transformers",
    "vllm_enable_sleep_mode": True,
    "vllm_structured_outputs_regex": "a+",
    "vllm_server_base_url": "http://x:1",
    "vllm_server_host": "1.2.3.4",
    "vllm_server_port": 9,
    "vllm_server_timeout": 1.0,
    "vllm_group_port": 7,
    "vllm_gpu_memory_utilization": 0.4,
    "vllm_max_model_length": 999,
    "vllm_tensor_parallel_size": 2,
    "beta": 0.02,
    "num_iterations": 2,
    "epsilon": 0.1,
    "delta": 4.0,
    "epsilon_high": 0.3,
    "sapo_temperature_neg": 1.2,
    "sapo_temperature_pos": 1.1,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
    "importance_sampling_level": "sequence",
    "reward_weights": [1.0, 0.5],
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "loss_type": "dr_grpo",
    "mask_truncated_completions": True,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 10,
    "top_entropy_quantile": 0.2,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.1,
    "entropy_coef_max": 0.2,
    "entropy_coef_delta": 0.1,
    "entropy_target": 0.3,
    "max_tool_calling_iterations": 3,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.5,
    "vllm_importance_sampling_clip_min": 0.1,
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    "log_completions": True,
    "log_multimodal": False,
    "num_completions_to_print": 3,
    "log_unique_prompts": True,
    "log_completions_hub_repo": "me/x",
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"a": 1},
    "use_transformers_paged": True,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_steps": 100,
    "num_train_epochs": 3,
    "optim": "paged_adamw_8bit",
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_steps": 7,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "cosine",
    "bf16": True,
    "gradient_checkpointing": False,
    "seed": 5,
    "save_steps": 12,
    "save_total_limit": 1,
    "eval_steps": 20,
    "logging_steps": 0.5,
    "report_to": ["tensorboard", "mlflow"],
    "deepspeed": "zero3.json",
    "no_such_field_at_all": 1,
    "peft.r": 8,
    "peft.lora_alpha": 64,
    "peft.target_modules": ["q_proj", "v_proj"],
    "peft.lora_dropout": 0.1,
}


def composed(values: dict[str, object]) -> Config:
    """Return the configuration that the options of a conversion stand for."""
    register()
    (config,) = preflight(convert(values).words)
    return config


@pytest.mark.parametrize("key", FIELDS)
def test_no_key_is_dropped(key: str) -> None:
    found = convert({"use_vllm": True, key: FIELDS[key]})
    made = {source for option in found.options for source in option.sources}
    lost = {entry.key for entry in found.lost}
    assert (key in made) + (key in lost) + (key in found.same) >= 1


def test_all_fields_at_once() -> None:
    found = convert(FIELDS)
    lost = {entry.key: entry.reason for entry in found.lost}
    assert lost["no_such_field_at_all"] == "rlkit has no such option"
    assert "memory plan" in lost["vllm_gpu_memory_utilization"]
    config = composed({k: v for k, v in FIELDS.items() if k != "optim"})
    # 32 rows in 4 parts of 8: 8 prompts of 4, and an update every 2 parts.
    assert (config.prompts_per_step, config.algorithm.group_size) == (8, 4)
    assert (config.optim.minibatches, config.optim.inner_epochs) == (2, 2)
    # 100 updates, 4 of each batch; saved every 12 updates, looked at every 20.
    assert config.steps == 25
    assert (config.checkpoint.every, config.checkpoint.keep_last) == (3, 2)
    assert config.evaluation.every == 5
    assert (config.ratio.level, config.ratio.clip_low) == ("sequence_mean", 0.1)
    assert (config.ratio.clip_high, config.ratio.delta) == (0.3, 4.0)
    assert (config.kl.estimator, config.kl.gradient, config.kl.beta) == ("k3", "pathwise", 0.02)
    assert (config.correction.mode, config.correction.level) == ("truncate", "token")
    assert (config.correction.low, config.correction.high) == (0.1, 2.5)
    assert flatten(config)["algorithm.aggregation"] is Aggregation.constant_length
    assert config.algorithm.mask_truncated
    assert flatten(config)["algorithm.entropy_fraction"] == 0.2
    assert config.generator.sampling.top_k == 40
    assert config.optim.schedule == "cosine"
    assert config.optim.warmup_steps == 7
    assert config.optim.betas == [0.8, 0.95]
    assert config.model.lora.targets == ["q_proj", "v_proj"]
    assert (config.model.lora.rank, config.model.lora.alpha) == (8, 64.0)
    assert "optim=paged_adamw8bit" in found.words


def test_what_a_file_leaves_out_has_trls_defaults() -> None:
    config = composed({"use_vllm": True})
    assert config.kl.direction == "none"  # beta 0
    assert flatten(config)["algorithm.aggregation"] is Aggregation.token_mean  # dapo
    assert (config.optim.learning_rate, config.optim.schedule) == (1e-6, "linear")
    assert (config.correction.mode, config.correction.level) == ("mask", "sequence")
    assert config.correction.high == 3.0
    assert (config.prompts_per_step, config.algorithm.group_size) == (1, 8)
    assert config.task.max_completion_length == 512
    assert all(o.by_default for o in convert({}).options if o.word != "algorithm=grpo")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"beta": 0.04}, ["kl=reverse_k3_corrected", "kl.beta=0.04"]),
        ({"beta": 0.04, "use_bias_correction_kl": False}, ["kl=reverse_k3"]),
        ({"loss_type": "grpo"}, ["algorithm.aggregation=sequence_mean"]),
        (
            {"loss_type": "bnpo"},
            ["algorithm.aggregation=microbatch_token_mean", "memory.tokens_per_microbatch=0"],
        ),
        ({"loss_type": "luspo"}, ["algorithm.aggregation=sequence_sum"]),
        # TRL's epsilon_high of cispo is the cap itself.
        ({"loss_type": "cispo", "epsilon_high": 5.0}, ["ratio=cispo", "ratio.clip_high=4.0"]),
        ({"loss_type": "sapo"}, ["ratio=sapo", "ratio.tau_negative=1.05"]),
        ({"epsilon_high": 0.28}, ["ratio.clip_low=0.2", "ratio.clip_high=0.28"]),
        ({"scale_rewards": False}, ["algorithm.advantage.scale=none"]),
        ({"scale_rewards": True}, ["algorithm.advantage.scale=group_std"]),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            ["algorithm.advantage.combine=normalize_each", "algorithm.advantage.scale=group_std"],
        ),
        ({"scale_rewards": "none"}, ["algorithm.advantage.scale=none"]),
        ({"use_vllm": False}, ["generator=hf", "correction=none"]),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "token_mask"},
            ["correction=token_mask", "correction.low=0.0", "correction.high=3.0"],
        ),
        (
            {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 9},
            ["generator=vllm_server", "generator.url=http://0.0.0.0:9"],
        ),
        (
            {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4},
            ["prompts_per_step=8", "optim.minibatches=1"],
        ),
        ({"max_steps": 10, "warmup_ratio": 0.25}, ["steps=10", "optim.warmup_steps=3"]),
        ({"optim": "adamw_torch_fused"}, ["optim=adamw"]),
        ({"use_peft": False}, ["model.tuning=full"]),
        ({"load_in_4bit": True}, ["memory=qlora"]),
        ({"chat_template_kwargs": {"a": True}}, ["+model.chat_template_kwargs.a=true"]),
    ],
)
def test_single_keys(values: dict[str, object], words: list[str]) -> None:
    found = convert(values)
    assert set(words) <= set(found.words)
    assert not found.lost
    register()
    assert preflight(found.words)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"loss_type": "vespo"}, "loss_type"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"warmup_ratio": 0.1}, "warmup_ratio"),
        ({"optim": "lion"}, "optim"),
    ],
)
def test_values_without_a_counterpart_are_listed(values: dict[str, object], key: str) -> None:
    assert key in [entry.key for entry in convert(values).lost]


def test_a_python_file_is_read_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(
        "import nothing_of_this_name\n"
        "args = trl.GRPOConfig(beta=0.1, learning_rate=-1e-5 * 1, output_dir=OUT,\n"
        "                      num_generations=4)\n"
        "peft = LoraConfig(r=4, target_modules=['q_proj'])\n"
    )
    values, unread = read(file)
    assert values == {
        "beta": 0.1,
        "num_generations": 4,
        "peft.r": 4,
        "peft.target_modules": ["q_proj"],
    }
    assert [re.split(" = ", line)[0] for line in unread] == ["learning_rate", "output_dir"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "FILE must be readable"),
        ("a.yaml", "- 1", "FILE must hold keys and values"),
        ("a.py", "x = 1", "there is no call of GRPOConfig"),
    ],
)
def test_files_that_hold_no_configuration_are_refused(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (1e-6, "1e-06"),
        ([0.9, 0.999], "[0.9,0.999]"),
        (["q_proj", "v"], "[q_proj,v]"),
        ("~/a b", "'~/a b'"),
        ("http://x:1/v1", "http://x:1/v1"),
    ],
)
def test_values_are_written_as_hydra_reads_them(value: object, text: str) -> None:
    assert written(value) == text
