"""Weights that vLLM has packed away: nobody can share them, and nobody can write to them."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def repacked_layers(model: torch.nn.Module) -> list[str]:
    """Name the layers of vLLM's `model` that do not compute on the weight that they hold.

    On a CPU a layer may multiply by a packed copy. Then its weight is empty, or it is still there
    and nobody reads it. A product with a weight of no rows tells: a layer that reads its weight has
    no outputs for it. On other devices no layer has such a product of its own.
    """
    found = []
    for name, module in model.named_modules():
        product, weight = getattr(module, "cpu_linear", None), getattr(module, "weight", None)
        if product is None:
            continue
        if weight is None or weight.numel() == 0 or not _reads(product, weight):
            found.append(name.removesuffix(".base_layer"))
    return list(dict.fromkeys(found))  # a layer wrapped for LoRA answers for its base


def describe(layers: list[str]) -> str:
    """Say in one line what is wrong, for a refusal or a fallback; empty when nothing is."""
    if not layers:
        return ""
    return (
        f"vLLM has packed the weights of {len(layers)} layers for this CPU ({layers[0]} first), so "
        "that they cannot be shared or replaced"
    )


def _reads(product: Any, weight: torch.Tensor) -> bool:
    row = weight.new_zeros(1, weight.shape[-1])
    try:
        return bool(product(row, weight[:0], None).shape[-1] == 0)
    except RuntimeError:
        return False  # a packed product that refuses a weight which it does not know
