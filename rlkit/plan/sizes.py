"""This arithmetic sizes what stays on the device: weights, adapters, optimiser, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from rlkit.models.compat import recomputable_layers
from rlkit.models.config import LoRAConfig, QuantConfig, QuantKind
from rlkit.models.fp8 import fp8_bytes
from rlkit.models.quantize import (
    fp8_layers,
    kept_layers,
    nf4_bytes,
    quantisable,
    saved_quantization,
)
from rlkit.policy.lora import target_layers
from rlkit.training.optim import OptimKind

_GATHERED = 3
"""Whole layers in memory while sharded ones compute."""
_QUANTISED_MOMENTS = {OptimKind.adamw8bit: 2.0 + 2 * 4 / 256, OptimKind.paged_adamw8bit: 0.0}
"""Device memory of both moments per parameter; paged moments may live in the host's."""


def weight_bytes(
    model: nn.Module, config: PreTrainedConfig, dtype: torch.dtype, quant: QuantConfig
) -> int:
    """Return the bytes of the base model, quantisation states included.

    Args:
        model: The model, on the meta device.
        config: Its architecture.
        dtype: The type of weights that are not quantised.
        quant: The quantisation that is asked for.

    Returns:
        Bytes; tied weights count once.
    """
    in_nf4 = nf4_layers(model, config, quant)
    in_fp8 = fp8_layers(quant, config)
    double_quant = _double_quant(config, quant)
    total = 0
    for name, parameter in model.named_parameters():  # tied ones once
        if name.removesuffix(".weight") in in_nf4:
            total += nf4_bytes(parameter.numel(), double_quant=double_quant)
        elif name.removesuffix(".weight") in in_fp8:
            total += fp8_bytes(*parameter.shape)
        else:
            total += parameter.numel() * dtype.itemsize
    return total


def sharded_bytes(model: nn.Module, dtype: torch.dtype, ranks: int) -> int:
    """Return what a rank holds at most of a model whose layers are shared out to `ranks`.

    Beside its part that is all of what is no layer, the layer that computes, the next one, and the
    message that it arrives in.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = recomputable_layers(model).values()
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    # A matrix is cut by rows, of which the first ranks may have one more.
    parts = sum(-(-len(p) // ranks) * p[0].numel() for layer in layers for p in layer.parameters())
    return (total - sum(sizes) + parts + _GATHERED * max(sizes)) * dtype.itemsize


def nf4_layers(model: nn.Module, config: PreTrainedConfig, quant: QuantConfig) -> set[str]:
    """Return names of the layers that are 4-bit once `model` is loaded with `quant`."""
    layers = quantisable(model)
    saved = saved_quantization(config)
    if saved is not None:
        skip = saved.get("llm_int8_skip_modules") or []
        return {name for name in layers if should_convert_module(name, list(skip))}
    if quant.kind is not QuantKind.nf4:
        return set()
    return set(layers) - set(kept_layers(layers, quant.skip))


def num_adapter_parameters(model: nn.Module, lora: LoRAConfig) -> int:
    """Return entries of all A (r, in) and B (out, r)."""
    layers = target_layers(model, lora)
    return sum(lora.rank * (m.in_features + m.out_features) for m in layers.values())


def moment_bytes(num_parameters: int, kind: OptimKind, *, dtype: torch.dtype) -> int:
    """Return AdamW's two moments of parameters in `dtype`, or in 8 bits."""
    return int(num_parameters * _QUANTISED_MOMENTS.get(kind, 2 * dtype.itemsize))


def kv_bytes_per_token(config: PreTrainedConfig, *, bytes_per_value: int) -> int:
    """Return keys and values of one token in all layers."""
    text: Any = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return 2 * int(text.num_hidden_layers) * int(kv_heads) * int(head_dim) * bytes_per_value


def _double_quant(config: PreTrainedConfig, quant: QuantConfig) -> bool:
    saved: Mapping[str, Any] | None = saved_quantization(config)
    if saved is None:
        return quant.double_quant
    return bool(saved.get("bnb_4bit_use_double_quant"))
