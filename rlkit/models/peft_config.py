"""A LoRA adapter's configuration in PEFT's format: what rlkit computes is read, the rest refused.

PEFT has options that change what an adapter computes: DoRA, aLoRA, a rank for each layer. Others
change what the base weights below it must be: PiSSA, OLoRA, CorDA and LoftQ take part of the base
into A and B. Options that are not known to be harmless are refused by name: PEFT gains new ones
every month.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlkit.models.config import LoRAConfig
from rlkit.models.folder import check_plain

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias")
_HARMLESS = (
    # Where it comes from.
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type"),
    # How it was trained, or starts; the tensors hold the outcome.
    *("corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
)
_STARTS = (None, True, False, "eva", "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights as they are."""
_ALL_LINEAR = "all-linear"


def read_adapter_config(folder: Path) -> LoRAConfig:
    """Return rank, scale and targets of the adapter in `folder`.

    Raises:
        ValueError: It is no LoRA adapter, or one with an option that rlkit does not compute. The
            message names the file, the option and its value, in one line.
    """
    path = folder / CONFIG
    if folder.is_dir():
        check_plain(folder, key="model.adapter")
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a PEFT adapter_config.json: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object, got {type(values).__name__}")
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be LORA, got {values.get('peft_type')}")
    for key, value in values.items():
        if value and key not in _READ + _HARMLESS:
            raise ValueError(f"{path}: {key} must be unset, got {value}")
    if values.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias must be none, got {values['bias']}")
    start = values.get("init_lora_weights")
    if start not in _STARTS:
        raise ValueError(
            f"{path}: init_lora_weights must leave the base weights as they are, got {start} "
            "(convert the adapter to plain LoRA when saving: path_initial_model_for_weight_"
            "conversion of PEFT)"
        )
    targets = values.get("target_modules")
    if targets == _ALL_LINEAR:
        targets = []
    if not isinstance(targets, list):
        raise ValueError(f"{path}: target_modules must be a list of names, got {targets}")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or not 1 <= rank <= 8192:
        raise ValueError(f"{path}: r must be a whole number in [1, 8192], got {rank!r:.60}")
    if not isinstance(alpha, int | float) or not 0 < alpha <= 1e6:
        raise ValueError(f"{path}: lora_alpha must be a number in (0, 1e6], got {alpha!r:.60}")
    return LoRAConfig(
        rank=rank,
        alpha=float(alpha),
        rslora=bool(values.get("use_rslora", False)),
        targets=[str(target) for target in targets],
    )
