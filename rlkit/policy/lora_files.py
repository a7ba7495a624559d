"""Adapters lie on disk in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

What is written here loads in PEFT, vLLM and lm-eval. What is read must fit exactly: a missing, an
unexpected or a wrongly shaped tensor is an error that names it, never a partial load.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkit.models.peft_config import CONFIG, TENSORS
from rlkit.models.peft_config import read_adapter_config as read_adapter_config
from rlkit.policy.lora import LoRA, check_adapter, stored_dtype
from rlkit.runtime.files import published

ADAPTER_FOLDER = "adapter"
"""The name of the adapter's folder in a run's folder."""


def save_adapter(
    folder: Path, lora: LoRA, adapter: Mapping[str, Tensor], *, base_model: str
) -> None:
    """Write an adapter in PEFT's format, each file atomically and the config last.

    Args:
        folder: The folder to write to.
        lora: The shape and the scale of the adapter.
        adapter: Its tensors, by PEFT's keys.
        base_model: The hub id or folder that PEFT will load as base.

    Raises:
        ValueError: The tensors do not fit `lora`.
    """
    check_adapter(lora, adapter)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter.items()}
    with published(folder / TENSORS) as scratch:
        save_file(tensors, scratch, metadata={"format": "pt"})
    with published(folder / CONFIG) as scratch:
        scratch.write_text(json.dumps(_peft_config(lora, base_model), indent=2) + "\n")


def load_adapter(folder: Path, lora: LoRA, *, device: torch.device) -> dict[str, Tensor]:
    """Return the adapter in `folder` as leaves on `device`, in the key order and dtype of `lora`.

    It warns when every lora_B of a layer is zero: such an adapter does nothing there. Raises
    ValueError, naming the file and what is wrong, when it does not fit `lora` exactly.
    """
    config = read_adapter_config(folder)
    if not math.isclose(config.scale, lora.config.scale, rel_tol=1e-9):
        raise ValueError(
            f"{folder / CONFIG}: the scale must be model.lora's {lora.config.scale}, "
            f"got {config.scale}"
        )
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / TENSORS} must be a safetensors file: {error}") from error
    try:
        check_adapter(lora, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / TENSORS}: {error}") from error
    bad = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{folder / TENSORS}: tensors must be finite, got {bad[0]}")
    idle = [layer for layer in lora.shapes if not bool(tensors[lora.key(layer, "B")].any())]
    if idle:
        warnings.warn(
            f"{folder}: lora_B is zero in {len(idle)} of {len(lora.shapes)} layers "
            f"({idle[0]}, ...): the adapter changes nothing there",
            stacklevel=2,
        )
    return {
        key: tensors[key].to(device, stored_dtype(lora.config)).requires_grad_()
        for key in lora.expected_shapes()
    }


def _peft_config(lora: LoRA, base_model: str) -> dict[str, object]:
    alpha = lora.config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.config.rank,
        # PEFT types it as int; vLLM and PEFT only divide by the rank, so fractions work as well.
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "use_rslora": lora.config.rslora,
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in lora.shapes}),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
