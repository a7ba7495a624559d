"""Build a transformers model on weights that somebody else holds: no second copy.

The engine's fused weights, cut into the parts that transformers knows, are contiguous row slices:
the model computes on them directly, forward and backward, bit for bit as with weights of its own.
Quantised layers come with their codes: as bitsandbytes' `Params4bit`, or as `rlkit.models.fp8` has
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from rlkit.models.fp8 import fp8_layer, is_fp8, state_of
from rlkit.models.quantised import is_four_bit
from rlkit.models.quantize import settle, tensors_of


class CannotShare(ValueError):
    """An engine's weights are not those of the model: packed, in another layout or dtype."""


def model_on_views(
    config: PreTrainedConfig,
    views: Mapping[str, Tensor],
    location: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
) -> PreTrainedModel:
    """Return the model of `config` on `views`, its weights by parameter name; none is copied.

    Buffers are computed from `config`, as when loading. Writing to a parameter writes to its view.

    Args:
        config: The architecture.
        views: The weights by parameter name; they outlive the model.
        location: The folder or hub id of which the options of generation are read.
        dtype: The dtype of the weights that are not quantised.
        device: The device of the weights.
        attention: The attention implementation of transformers.

    Returns:
        The model, whose parameters are the views.

    Raises:
        CannotShare: A weight has no view of its shape, dtype and device.
    """
    with _parameters_on_meta():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention
        )
    for name, parameter in list(model.named_parameters()):
        view = _checked(name, views.get(name), parameter, dtype, device)
        owner, _, leaf = name.rpartition(".")
        if is_four_bit(view):
            model.set_submodule(owner, _four_bit_layer(model.get_submodule(owner), view))
        elif is_fp8(view):
            layer: Any = model.get_submodule(owner)
            model.set_submodule(owner, fp8_layer(layer, view))  # type: ignore[arg-type]
        else:
            setattr(model.get_submodule(owner), leaf, nn.Parameter(view, requires_grad=False))
    for module in model.modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            setattr(module, leaf, buffer.to(device))
    model.tie_weights()
    if any(map(is_four_bit, views.values())):
        settle(model, dtype)
    with suppress(OSError):  # without a file, what the model's own configuration says stays
        model.generation_config = GenerationConfig.from_pretrained(location)
    return model


def shared_bytes(model: nn.Module, views: Mapping[str, Tensor]) -> int:
    """Return the bytes of weights that `model` shares with `views`, each region counted once.

    Raises ValueError when a parameter lives anywhere but in its view.
    """
    for name, parameter in model.named_parameters():
        if name not in views or parameter.data_ptr() != views[name].data_ptr():
            raise ValueError(f"{name} must be a view of the engine's weights, got a copy")
    return sum(tensor.nbytes for tensor in tensors_of(model))


def _checked(
    name: str, view: Any, parameter: Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    wanted = (tuple(parameter.shape), dtype, device.type)
    got = "none"
    if view is not None:
        # Packed codes have another shape than the weight, and codes another dtype.
        shape = tuple(view.quant_state.shape if is_four_bit(view) else view.shape)
        found = dtype if is_four_bit(view) else view.dtype
        if is_fp8(view):
            found = state_of(view).dtype
        if (shape, found, view.device.type) == wanted:
            checked: Tensor = view
            return checked
        got = f"{shape} {view.dtype} on {view.device.type}"
    raise CannotShare(
        f"generator.weights=shared needs {name} of shape {wanted[0]} in {dtype} on {device.type}, "
        f"got {got}"
    )


def _four_bit_layer(linear: nn.Module, weight: Tensor) -> nn.Module:
    """Make bitsandbytes' layer in place of `linear`, computing with `weight`, a `Params4bit`."""
    from bitsandbytes.nn.modules import Linear4bit

    if not isinstance(linear, nn.Linear):
        raise ValueError(f"a 4-bit weight must belong to a linear layer, got {linear}")
    layer: Any = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = weight
    layer.bias = linear.bias
    four_bit: nn.Module = layer
    return four_bit


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give modules that are built inside parameters without memory, but buffers with their values.

    `torch.device("meta")` would lose the buffers that no file holds, such as RoPE's frequencies.
    """
    register = nn.Module.register_parameter

    def without_memory(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # one that is stays the one that ties share
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
