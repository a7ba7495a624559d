"""The changes to vLLM on a CPU: weights stay as loaded, adapters are plain products.

They hold for as long as the process lives, and all lines from 0.30 to 0.32 take them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

NAMES = """
model_executor/layers/utils.py dispatch_cpu_unquantized_gemm(layer, remove_weight)
lora/punica_wrapper/punica_base.py PunicaWrapperBase: token_lora_indices update_metadata
lora/punica_wrapper/punica_cpu.py PunicaWrapperCPU: add_lora_linear
v1/sample/ops/logprobs.py batched_count_greater_than(x, values)
"""


def prepare_cpu() -> None:
    """Change vLLM before `vllm.LLM` is called on a CPU; harmless when called again.

    A name that a vLLM does not have is left alone. `repacked_layers` then finds packed weights, and
    the self-tests at the start of a run find an adapter that is not applied.
    """
    _keep_weights()
    _apply_adapters_by_products()
    _count_ranks_eagerly()


def _keep_weights() -> None:
    """Let linear layers and heads compute on the weight that they hold.

    vLLM packs weights into a layout of the CPU's own and leaves `weight` empty, out of reach for
    sharing and for full updates. oneDNN packs on every CPU. The kernels for AMX pack where a 16-bit
    weight is at most 1 MiB, and zentorch packs on AMD. All three go through one function. Plain
    products cost 15% of the decoding speed.
    """
    from vllm.model_executor.layers import utils

    layers: Any = utils
    # vLLM imports the function at each call, so a new value in its module reaches every layer. A
    # `partial` is ours: a second call changes nothing.
    original = getattr(layers, "dispatch_cpu_unquantized_gemm", None)
    if original is not None and not isinstance(original, partial):
        layers.dispatch_cpu_unquantized_gemm = partial(_dispatch, original)


def _dispatch(original: Callable[..., None], layer: Any, remove_weight: bool) -> None:
    if layer.weight.ndim == 2:
        # vLLM's layer calls `cpu_linear(x, weight, bias)`; torch's own reads the weight as it is.
        layer.cpu_linear = linear
    else:
        # vLLM's convolutions can read packed weights only.
        original(layer, remove_weight)


def _apply_adapters_by_products() -> None:
    """Multiply the rows that use an adapter by its factors.

    vLLM gathers a copy of A and B for each token, which takes 2.4 times as long. It also takes rows
    without an adapter in a mixed batch for rows of the last slot.
    """
    from vllm.lora.punica_wrapper import punica_cpu

    wrapper: Any = punica_cpu.PunicaWrapperCPU
    if wrapper.add_lora_linear is not _add_lora_linear:
        # Each batch notes its slots once, and the products of all layers read them.
        wrapper.update_metadata = _noting_slots(wrapper.update_metadata)
        wrapper.add_lora_linear = _add_lora_linear


def _count_ranks_eagerly() -> None:
    """Count the rank of a sampled token as it is: compiling that one line takes 10 to 30 s."""
    from vllm.v1.sample import sampler as sampler_module

    sampler: Any = sampler_module
    # The sampler holds its own reference to the compiled function, so it is replaced there.
    sampler.batched_count_greater_than = _count_greater


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
    """Add scale B (A x[rows]) to y[rows], for every slot in use and every fused part."""
    flat, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    for slot, rows in wrapper.rlkit_rows:
        begin = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = inputs[rows] @ a[slot, 0].T
            flat[rows, begin : begin + size] += scale * (low @ b[slot, 0].T)
            begin += size
