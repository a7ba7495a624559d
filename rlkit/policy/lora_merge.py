"""This module folds a LoRA adapter into the weights below it: W + s B A, once, at the end.

Never on the way: merging and unmerging in 16 bits after every update makes the base drift.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlkit.models.quantised import dense
from rlkit.policy.lora import LoRA


@torch.no_grad()
def merged_weights(
    model: nn.Module, lora: LoRA, adapter: Mapping[str, Tensor], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return every parameter of `model` by name, tied ones once, with `adapter` in it, on the CPU.

    W + s B A is summed in float32 and rounded once. A 4-bit weight counts as what its layer
    computes with, which is what the adapter was trained on; the result is not 4-bit.

    Args:
        model: The model with the adapted layers.
        lora: The layers and the scale of the adapter.
        adapter: Its tensors, by PEFT's keys.
        dtype: The dtype of the result.

    Returns:
        The parameters by name.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weight = dense(parameter)
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer in lora.shapes:
            a, b = (adapter[lora.key(layer, factor)].float() for factor in "AB")
            weight = weight.float() + lora.config.scale * (b @ a)
        weights[name] = weight.to("cpu", dtype)
    return weights
