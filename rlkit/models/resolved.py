"""This module finds out once where a configured model lies, and its shape, dtype and tokenizer.

A start makes one record and hands it to the memory plan, to the engine and to the loading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlkit.models.config import AdapterUse, DType, ModelConfig
from rlkit.models.merged_folder import merged_folder
from rlkit.models.source import (
    architecture_at,
    cache_root,
    load_options,
    locate,
    readable,
    revision_of,
    with_adapter_shape,
)
from rlkit.models.tokenizer import tokenizer_at
from rlkit.runtime.say import Say

_TORCH_DTYPES = {DType.bf16: torch.bfloat16, DType.fp16: torch.float16, DType.fp32: torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """This record holds what every part of a start asks about the model; no weights are read."""

    config: ModelConfig
    """The user's options, with the shape of an adapter that trains on."""
    location: str
    """The folder in Hugging Face format, or the hub id, of the weights."""
    revision: str | None
    """The revision to load from the hub; None for what lies on this machine."""
    hf_config: PreTrainedConfig
    """The architecture. It is shared: nobody may write to it."""
    device: torch.device
    dtype: torch.dtype
    dtype_note: str
    """One line that says why it is this dtype."""
    tokenizer: PreTrainedTokenizerBase
    """With its chat template and a pad token."""
    template_note: str
    """One line that says which template it is."""
    unmerged: Path | None
    """The adapter that `location` still lacks, see `with_merged_adapter`."""


def resolve_model(config: ModelConfig, *, device: torch.device, say: Say) -> ResolvedModel:
    """Find the model of `config` and read its architecture and its tokenizer.

    Args:
        config: The options of the model.
        device: The policy lives on it.
        say: Takes a line before each slow step.

    Returns:
        What is known before any weight is read.

    Raises:
        ValueError: There is no such model or its adapter or tokenizer does not fit; one line.
    """
    config = with_adapter_shape(config)
    location = locate(config, say=say)
    hf_config = architecture_at(location, config)
    tokenizer, template_note = tokenizer_at(location, config, hf_config)
    dtype, dtype_note = resolve_dtype(config.dtype, device)
    merges = config.adapter is not None and config.adapter_use is AdapterUse.merge
    return ResolvedModel(
        config=config,
        location=location,
        revision=revision_of(config),
        hf_config=hf_config,
        device=device,
        dtype=dtype,
        dtype_note=dtype_note,
        tokenizer=tokenizer,
        template_note=template_note,
        unmerged=Path(config.adapter).expanduser() if merges and config.adapter else None,
    )


def with_merged_adapter(model: ResolvedModel, *, say: Say) -> ResolvedModel:
    """Return `model` at a folder that holds its adapter in its weights, made once.

    A model without such an adapter comes back as it is. The memory plan needs no merged weights:
    a run that does not fit is refused before this slow step.

    Raises:
        ValueError: The adapter does not fit the model.
    """
    if model.unmerged is None:
        return model
    cache = cache_root(model.config.cache_dir)
    with readable(model.config):
        options = load_options(model.config)
        folder = merged_folder(model.location, model.unmerged, cache, options=options, say=say)
    return replace(model, location=str(folder), revision=None, unmerged=None)


def resolve_dtype(wanted: DType, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the torch dtype that `wanted` means on `device`, and one line that says why."""
    if wanted is not DType.auto:
        return _TORCH_DTYPES[wanted], f"dtype: {wanted.value} (model.dtype)"
    if device.type != "cuda":
        return torch.float32, f"dtype: fp32 (auto: {device.type})"
    if not torch.cuda.is_available():
        return torch.bfloat16, "dtype: bf16 (auto: there is no card here to ask)"
    name = torch.cuda.get_device_name(device)
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"dtype: bf16 (auto: {name} computes in bfloat16)"
    return torch.float16, f"dtype: fp16 (auto: {name} has no bfloat16 units)"
