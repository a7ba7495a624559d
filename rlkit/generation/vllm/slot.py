"""Find the place of an adapter in vLLM's buffers, and write there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlkit.generation.vllm.accel.lora_kernels import CopyTable

_STACKS_A, _STACKS_B = attrgetter("lora_a_stacked"), attrgetter("lora_b_stacked")
_TABLES = 2
"""Most adapters whose addresses are kept; each keeps the tensors alive."""


class AdapterBuffers(NamedTuple):
    """These are the buffers of one layer as the trainer knows it: q_proj, not qkv_proj."""

    owner: str
    """Name of vLLM's module, which may be fused."""
    module: Any
    a: Tensor
    """(slots, 1, R, in)."""
    b: Tensor
    """(slots, 1, out, R), the scale folded in."""


@dataclass(slots=True)
class AdapterSlot:
    """One adapter lives here: views of the stacked buffers are kept between writes."""

    index: int
    layers: tuple[str, ...]
    """The adapted layers, as the trainer names them, in the order of `factors`."""
    factors: tuple[Tensor, ...]
    """A (r, in) and B (out, r) of each layer in turn."""
    modules: tuple[Any, ...]
    """The wrapped ones."""
    stacks_a: tuple[tuple[Tensor, ...], ...]
    """Their A buffers as they were."""
    stacks_b: tuple[tuple[Tensor, ...], ...]
    """Their B buffers."""
    buffers: tuple[Tensor, ...]
    """All of these."""
    addresses: list[int]
    """Theirs."""
    tables: list[CopyTable] = field(default_factory=list)
    """On CUDA, the copies into `factors` of the adapters written last, the latest first."""

    def valid(self, manager: Any, int_id: int, layers: Sequence[str], rank: int) -> bool:
        """Tell whether vLLM still holds the adapter in this slot, in these buffers.

        Args:
            manager: vLLM's `LoRAModelManager`.
            int_id: The adapter's id in vLLM.
            layers: The adapted layers, in the order of the factors.
            rank: The adapter's rank.
        """
        return (
            self.layers == layers
            and self.factors[0].shape[0] == rank
            and manager.lora_index_to_id[self.index] == int_id
            and int_id in manager.list_adapters()
            and all(map(is_, map(_STACKS_A, self.modules), self.stacks_a))
            and all(map(is_, map(_STACKS_B, self.modules), self.stacks_b))
            and self.addresses == list(map(Tensor.data_ptr, self.buffers))
        )

    def write(self, factors: Sequence[Tensor], scale: float) -> None:
        """Copy A and scale B of each layer in turn: one launch on CUDA, for tensors seen before."""
        targets, values = list(self.factors), list(factors)
        if values[0].is_cuda:
            from rlkit.generation.vllm.accel.lora_kernels import CopyTable, fits

            table = next((table for table in self.tables if table.reads(factors)), None)
            if table is None and fits(values, targets):
                table = CopyTable(values, targets, [False, True] * (len(values) // 2))
                # A policy and what it is compared with take turns.
                self.tables = [table, *self.tables[: _TABLES - 1]]
            if table is not None:
                table.copy(scale)
                return
        widens = targets[0].dtype.itemsize > values[0].dtype.itemsize
        if widens or math.frexp(scale)[0] == 0.5:
            # Rounded once all the same (a power of two is exact), and needs no memory.
            torch._foreach_copy_(targets, values)
            torch._foreach_mul_(targets[1::2], scale)
        else:
            values[1::2] = torch._foreach_mul(values[1::2], scale)
            torch._foreach_copy_(targets, values)


def find_slot(
    parts: Mapping[str, AdapterBuffers], index: int, layers: tuple[str, ...], rank: int
) -> AdapterSlot:
    """Find the places of the factors of `layers` in slot `index`.

    Args:
        parts: vLLM's buffers by layer.
        index: The number of the slot.
        layers: The adapted layers.
        rank: The adapter's rank, >= 1.

    Raises:
        ValueError: A layer has no LoRA buffers or `rank` does not fit them.
    """
    if missing := [layer for layer in layers if layer not in parts]:
        raise ValueError(
            f"every adapted layer must have LoRA buffers in vLLM, got {len(missing)} without: "
            f"{', '.join(missing[:3])}"
        )
    factors: list[Tensor] = []
    for layer in layers:
        _, _, a, b = parts[layer]
        if rank > a.shape[2]:
            raise ValueError(f"the adapter's rank must be <= {a.shape[2]}, got {rank}")
        factors += [a[index, 0, :rank], b[index, 0, :, :rank]]
    modules = tuple({part.owner: part.module for part in parts.values()}.values())
    stacks = [tuple(map(get, modules)) for get in (_STACKS_A, _STACKS_B)]
    buffers = tuple(buffer for kind in stacks for stack in kind for buffer in stack)
    return AdapterSlot(
        index=index,
        layers=layers,
        factors=tuple(factors),
        modules=modules,
        stacks_a=stacks[0],
        stacks_b=stacks[1],
        buffers=buffers,
        addresses=list(map(Tensor.data_ptr, buffers)),
    )
