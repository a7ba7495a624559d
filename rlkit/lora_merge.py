"""A LoRA adapter folded into the weights below it: W + s B A, once, at the end.

Never on the way: merging and unmerging in 16 bits after every update makes the base drift.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlkit.lora import LoRA
from rlkit.models.quantize import dequantised
from rlkit.models.views import is_four_bit


def weights_of(model: nn.Module, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter of `model` by name, tied ones once, in `dtype` on the CPU.

    A 4-bit weight counts as what its layer computes with; the result is not 4-bit.
    """
    return merged_weights(model, None, {}, dtype=dtype)


@torch.no_grad()
def merged_weights(
    model: nn.Module, lora: LoRA | None, adapter: Mapping[str, Tensor], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """`weights_of` with `adapter` in the layers of `lora`: summed in float32, rounded once.

    On 4-bit weights the adapter is added to what it was trained on, not to the 16-bit original.
    """
    shapes = {} if lora is None else lora.shapes
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        layer, weight = name.removesuffix(".weight"), _plain(model, name, parameter)
        if lora is not None and name != layer and layer in shapes:
            a, b = (adapter[lora.key(layer, factor)].float() for factor in "AB")
            weight = weight.float() + lora.config.scale * (b @ a)
        weights[name] = weight.to("cpu", dtype)
    return weights


def _plain(model: nn.Module, name: str, parameter: Tensor) -> Tensor:
    if not is_four_bit(parameter):
        return parameter
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, nn.Linear)
    return dequantised(layer)
