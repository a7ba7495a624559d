"""Choose the linear layers of a base model that become NF4, and load them with bitsandbytes.

A layer W (out, in) is stored as 4-bit codes in blocks of 64 with one scale each. It is dequantised
for every product, and gradients pass through it to the input, never into it. Layers that vLLM fuses
into one (q, k, v; gate, up) are quantised or kept together, so that trainer and engine hold the
same numbers.

Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig

from rlkit.models.config import QuantConfig, QuantKind
from rlkit.models.fp8 import fp8_layer, fp8_weight, is_fp8, quantise, state_of
from rlkit.runtime.distribution import how_to_install

BLOCK = 64
"""Weights that share a scale."""
_NESTED_BLOCK = 256
"""Scales that share a scale of their own, with double quantisation."""
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers of Hugging Face models that are one layer in vLLM, and its name there."""


def meta_model(hf_config: PreTrainedConfig) -> nn.Module:
    """Return the model of `hf_config` without storage: names and shapes only."""
    plain = type(hf_config).from_dict(
        {k: v for k, v in hf_config.to_dict().items() if k != "quantization_config"}
    )
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: nn.Module = auto.from_config(plain)
    return model


def quantisable(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that NF4 applies to, by name: all but the language-model head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"
    }


def unit_of(layer: str) -> str:
    """Return vLLM's name for `layer`: that of the fused layer for q, k, v, gate and up."""
    parent, dot, leaf = layer.rpartition(".")
    for fused, parts in _FUSED.items():
        if leaf in parts:
            return f"{parent}{dot}{fused}"
    return layer


def units_of(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return `layers` by the unit that quantises or keeps them together, in their order."""
    units: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        units[unit_of(layer)] = (*units.get(unit_of(layer), ()), layer)
    return units


def kept_layers(layers: Iterable[str], skip: Iterable[str]) -> list[str]:
    """Return the layers that `skip` keeps in 16 bits, whole units each, in the order of `layers`.

    Raises ValueError when an entry of `skip` is no layer and no end of one.
    """
    layers, skip = list(layers), list(skip)
    unknown = [s for s in skip if not any(_ends_with(name, s) for name in layers)]
    if unknown:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise ValueError(
            f"memory.quant.skip must name linear layers of the model ({', '.join(leaves)}), got "
            f"{', '.join(unknown)}"
        )
    kept = {
        unit
        for unit, parts in units_of(layers).items()
        if any(_ends_with(part, s) for part in parts for s in skip)
    }
    return [name for name in layers if unit_of(name) in kept]


def quantization_config(
    config: QuantConfig, hf_config: PreTrainedConfig, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return what transformers quantises with while loading; None = nothing to do while loading.

    Raises ValueError when `memory.quant` does not fit the checkpoint or the model.
    """
    saved = saved_quantization(hf_config)
    if saved is not None:
        if config.kind is QuantKind.nf4 and config.skip:
            raise ValueError(
                "memory.quant.skip must be empty for a checkpoint that is quantised already, got "
                f"{config.skip}"
            )
        return None
    if config.kind is not QuantKind.nf4:
        return None
    kept = kept_layers(quantisable(meta_model(hf_config)), config.skip)
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip_modules(kept),
    )


def is_nf4(config: QuantConfig, hf_config: PreTrainedConfig) -> bool:
    """Return whether the loaded model has 4-bit layers, by `memory.quant` or by its checkpoint."""
    return config.kind is QuantKind.nf4 or saved_quantization(hf_config) is not None


def fp8_layers(config: QuantConfig, hf_config: PreTrainedConfig) -> frozenset[str]:
    """Return the names of the layers that `memory.quant` puts into 8 bits; none for other kinds.

    Raises ValueError for a checkpoint that is quantised already.
    """
    if config.kind is not QuantKind.fp8:
        return frozenset()
    if saved_quantization(hf_config) is not None:
        raise ValueError("memory.quant.kind must be none or nf4 for a checkpoint in NF4, got fp8")
    layers = quantisable(meta_model(hf_config))
    return frozenset(layers) - set(kept_layers(layers, config.skip))


def into_fp8(model: nn.Module, layers: Iterable[str], device: torch.device) -> None:
    """Move a loaded `model` to `device`, its `layers` in 8 bits, one after the other.

    So the model in 16 bits is never on the device as a whole.
    """
    for name in layers:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"a weight in 8 bits must belong to a linear layer, got {linear}")
        codes, scale = quantise(linear.weight.data.to(device))
        weight = fp8_weight(codes, scale, linear.weight.dtype)
        model.set_submodule(name, fp8_layer(linear, weight))
    model.to(device)


def kind_of(config: QuantConfig, hf_config: PreTrainedConfig) -> QuantKind:
    """Return what linear layers of the loaded model are dequantised from for every product."""
    return config.kind if saved_quantization(hf_config) is None else QuantKind.nf4


def skip_modules(kept: Iterable[str]) -> list[str]:
    """Return `llm_int8_skip_modules` for transformers and vLLM: vLLM looks for the fused names."""
    names = list(kept)
    return sorted({"lm_head", *names, *map(unit_of, names)})


def saved_quantization(hf_config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """Return the quantisation of a checkpoint that is NF4 already; None for one that is not
    quantised.

    Raises ValueError for every other quantisation: no gradient was tested through it.
    """
    saved = getattr(hf_config, "quantization_config", None)
    if saved is None:
        return None
    values: Mapping[str, Any] = saved if isinstance(saved, Mapping) else saved.to_dict()
    method, kind = values.get("quant_method"), values.get("bnb_4bit_quant_type")
    if method != "bitsandbytes" or not values.get("load_in_4bit") or kind != "nf4":
        raise ValueError(
            "model.source must hold 16- or 32-bit weights or bitsandbytes NF4, got quantisation "
            f"{method} {kind or ''}".rstrip()
        )
    return values


def require_bitsandbytes() -> None:
    """Raise ValueError, with the command that helps, unless NF4 can be had here."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "memory.quant.kind=nf4 must have bitsandbytes "
            f"({how_to_install('bitsandbytes')}), got no bitsandbytes"
        )


def settle(model: nn.Module, dtype: torch.dtype) -> int:
    """Make a loaded model compute in `dtype`; return the number of its 4-bit layers."""
    from bitsandbytes.nn.modules import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        # Otherwise the first input decides, or what the checkpoint was made for.
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
        # On CPUs with AVX512-BF16 sampling repacks the weight for a product without a gradient.
        layer.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        if parameter.is_floating_point():  # a quantised checkpoint loads in its own dtype
            parameter.data = parameter.data.to(dtype)
    return len(layers)


def misread_widths(model: nn.Module) -> list[int]:
    """Return the row widths of 4-bit layers that bitsandbytes misreads on the layers' device.

    Its kernels for CPUs with AVX-512 take wrong scales where a row ends inside a block of 64. Each
    such width is tried on random rows: an NF4 number is off by at most 0.16 of its scale.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    devices = {layer.in_features: layer.weight.device for layer in layers}
    misread = []
    for width in sorted(width for width in devices if width % BLOCK):
        rows = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(0))
        rows = rows.to(devices[width])
        found: Tensor = dequantize_4bit(*quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4"))
        if (found - rows).abs().max() > 0.16 * rows.abs().max():
            misread.append(width)
    return misread


def nf4_bytes(num_weights: int, *, double_quant: bool) -> int:
    """Return the bytes of an NF4 layer of `num_weights`: codes, scales of the blocks, and tables.

    A code takes 1/2 byte. A block of 64 weights has a float32 scale. With double quantisation, it
    has a uint8 scale, and every 256 scales have a float32 scale, with one offset in all. The two
    tables hold 16 and 256 float32.
    """
    blocks = -(-num_weights // BLOCK)
    codes = -(-num_weights // 2)
    table = 16 * 4
    if not double_quant:
        return codes + 4 * blocks + table
    return codes + blocks + 4 * -(-blocks // _NESTED_BLOCK) + 4 + 256 * 4 + table


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield every distinct tensor of the weights of `model`, quantisation states included."""
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            for tensor in _with_state(parameter):
                if tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    yield tensor


def _with_state(weight: Any) -> Iterator[Tensor]:
    yield weight.data
    if is_fp8(weight):
        yield state_of(weight).scale
    state = getattr(weight, "quant_state", None)
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if t is not None)
        state = state.state2


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
