"""NF4 models with random weights, made on the device from a configuration, layer by layer.

Neither memory nor speed depends on the values; a 70B model never exists in 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlkit.models.quantize import BLOCK, quantisable, settle

_SCALE = 0.05
"""Largest weight of every block; initialisations have about that."""
_NESTED_BLOCK = 256


def random_nf4(
    config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A frozen causal language model with 4-bit linear layers, double quantisation, random."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    for name, layer in quantisable(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _random_linear(layer, device, dtype))
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, _random_parameter(parameter, generator, device, dtype))
        _restore_buffers(module, config, device)
    model.tie_weights()
    settle(model, dtype)
    model.requires_grad_(False).train(False)
    return model


def _random_parameter(
    like: nn.Parameter, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> nn.Parameter:
    if like.dim() == 1:  # norms
        return nn.Parameter(torch.ones(like.shape, dtype=dtype, device=device), requires_grad=False)
    values = torch.empty(like.shape, dtype=dtype, device=device)
    values.normal_(0.0, 0.02, generator=generator)
    return nn.Parameter(values, requires_grad=False)


def _restore_buffers(module: nn.Module, config: PreTrainedConfig, device: torch.device) -> None:
    """Rotary frequencies are computed, not stored: make a module that has them anew."""
    if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
        fresh: Any = type(module)(config)
        for name, buffer in fresh.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=False)


def _random_linear(layer: nn.Linear, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from bitsandbytes import functional
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    bnb: Any = functional  # has no types
    numel = layer.weight.numel()
    blocks = -(-numel // BLOCK)
    # Scales of 0 plus an offset: every block has the same largest weight.
    state = bnb.QuantState(
        absmax=torch.zeros(blocks, dtype=torch.uint8, device=device),
        shape=layer.weight.shape,
        code=bnb.get_4bit_type("nf4", device=device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.tensor(_SCALE, device=device),
        state2=bnb.QuantState(
            absmax=torch.zeros(-(-blocks // _NESTED_BLOCK), device=device),
            code=bnb.create_dynamic_map().to(device),
            blocksize=_NESTED_BLOCK,
            dtype=torch.float32,
        ),
    )
    linear: Any = Linear4bit
    parameter: Any = Params4bit
    codes = torch.randint(0, 256, (numel // 2, 1), dtype=torch.uint8, device=device)
    with torch.device("meta"):
        made: nn.Module = linear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
        )
    made.weight = parameter(
        codes,
        requires_grad=False,
        quant_state=state,
        quant_type="nf4",
        blocksize=BLOCK,
        compress_statistics=True,
        bnb_quantized=True,
        module=made,
    )
    return made
