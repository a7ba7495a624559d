"""Merge an adapter into its model, once, into a folder of the cache.

The engine, the quantiser, the memory plan and the export then all meet an ordinary model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.models.convert import build_once
from rlkit.models.peft_config import CONFIG, TENSORS, read_adapter_config
from rlkit.models.quiet import no_progress_bars
from rlkit.runtime.say import Say

_PREFIX = "base_model.model."


def merged_folder(
    location: str, adapter: Path, cache: Path, *, options: dict[str, Any], say: Say
) -> Path:
    """Return the folder of the model at `location` with `adapter` in its weights.

    W + s B A is summed in float32 and rounded once to the dtype of the checkpoint.

    Args:
        location: The folder or hub id of the base model.
        adapter: A folder in PEFT's format.
        cache: The folder for converted models.
        options: Further arguments of every `from_pretrained`.
        say: Takes a line before the slow step.

    Raises:
        ValueError: The adapter does not fit the model, or has options that rlkit does not compute.
    """
    scale = read_adapter_config(adapter).scale
    digest = hashlib.sha256(f"{location} {options.get('revision')}".encode())
    for name in (CONFIG, TENSORS):
        file = adapter / name
        if not file.is_file():
            raise ValueError(f"model.adapter must be a folder with {name}, got {adapter}")
        digest.update(file.read_bytes())
    key = f"{Path(location).name[:60]}-merged-{digest.hexdigest()[:12]}"

    def build(folder: Path) -> None:
        say(f"Merging {adapter} into {location} (once) ...")
        with no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                location, dtype="auto", use_safetensors=True, **options
            )
            _merge(model, adapter / TENSORS, scale)
            model.save_pretrained(folder)
            tokenizer: Any = AutoTokenizer.from_pretrained(location, **options)
            tokenizer.save_pretrained(folder)

    return build_once(cache / "models" / key, build)


@torch.no_grad()
def _merge(model: nn.Module, file: Path, scale: float) -> None:
    """Add every layer's s B A to its weight; each tensor must have its layer and its partner."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError("model.adapter_use must be train with a quantised model, got merge")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} must be a safetensors file: {error}") from error
    layers = dict(model.named_modules())
    for key in list(tensors):
        name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        if ".lora_A." not in key:
            continue
        a, b = tensors.pop(key), tensors.pop(f"{_PREFIX}{name}.lora_B.weight", None)
        layer = layers.get(name)
        if b is None or not isinstance(layer, nn.Linear):
            raise ValueError(f"{file}: {key} must have a lora_B and a linear layer in the model")
        if (b.shape[0], a.shape[1]) != tuple(layer.weight.shape):
            raise ValueError(
                f"{file}: {key} must fit a weight of shape {tuple(layer.weight.shape)}, got "
                f"{(b.shape[0], a.shape[1])}"
            )
        layer.weight.copy_(_sum(layer.weight, a, b, scale))
    if tensors:
        raise ValueError(f"{file} must hold pairs of lora_A and lora_B, got also {min(tensors)}")


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
