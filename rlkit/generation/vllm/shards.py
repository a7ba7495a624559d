"""The part of an adapter that one rank of a team holds, cut by vLLM's own layers.

Layers that are split by outputs have a part of B, and those that are split by inputs a part of A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlkit.generation.vllm.slot import AdapterBuffers


def own_shards(
    parts: Mapping[str, AdapterBuffers], layers: Sequence[str], factors: Sequence[Tensor]
) -> list[Tensor]:
    """Return of each factor what this rank's buffers hold; mostly views.

    Args:
        parts: vLLM's buffers by layer, all parts of a fused layer in order.
        layers: The adapted layers.
        factors: A and B of each layer in turn, whole.

    Returns:
        The shards, in the order of `factors`; the factors themselves where nothing is split.
    """
    whole = dict(zip(layers, zip(factors[::2], factors[1::2], strict=True), strict=True))
    cut: dict[str, tuple[Tensor, Tensor]] = {}
    for names in _fused(parts):
        module = parts[names[0]].module
        adapted = [whole.get(name) for name in names]
        if module.tp_size == 1 or not any(adapted):
            continue
        some_a, some_b = ([f and f[side] for f in adapted] for side in (0, 1))
        if len(names) == 1:
            shards = [(module.slice_lora_a(some_a[0]), module.slice_lora_b(some_b[0]))]
        else:
            shards = [*zip(module.slice_lora_a(some_a), module.slice_lora_b(some_b), strict=True)]
        cut |= {name: s for name, s, f in zip(names, shards, adapted, strict=True) if f}
    return [factor for layer in layers for factor in cut.get(layer, whole[layer])]


def _fused(parts: Mapping[str, AdapterBuffers]) -> list[list[str]]:
    """Return the layers of each of vLLM's modules, in the order of its buffers."""
    found: dict[str, list[str]] = {}
    for layer, part in parts.items():
        found.setdefault(part.owner, []).append(layer)
    return list(found.values())
