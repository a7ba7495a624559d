"""Launch the fused kernels: tiling, chunking, alignment, and the first pass over a chunk."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.kernels import _logps_kernels as kernels
from rlkit.kernels.lm_head import LogitMap
from rlkit.kernels.tilings import Tiling, tiling_of
from rlkit.kernels.workspace import fused_row_bytes, padded
from rlkit.runtime.triton import TensorDescriptor, triton

_INTERPRETED = Tiling()


def tiling_for(device: torch.device) -> Tiling:
    """Return the one tiling of a device, so that a row's logps depend on nothing but the row.

    Raises ValueError for a card without one.
    """
    if device.type == "cpu":
        return _INTERPRETED
    capability = torch.cuda.get_device_capability(device)
    tiling = tiling_of(capability)
    if tiling is None:
        raise ValueError(
            "impl=triton needs a GPU of compute capability 8.0 or newer, "
            f"got {capability[0]}.{capability[1]}"
        )
    return tiling


def check(hidden: Tensor) -> None:
    """Raise ValueError unless the fused kernels take `hidden`."""
    if hidden.dtype not in (torch.bfloat16, torch.float16) or hidden.shape[1] % 8:
        raise ValueError(
            "impl=triton needs hidden in bfloat16 or float16 with D a multiple of 8, "
            f"got {hidden.dtype}, D = {hidden.shape[1]}"
        )


def aligned(matrix: Tensor) -> Tensor:
    """Return `matrix` with dense rows on 16-byte boundaries, copied if it has others."""
    step = matrix.stride(0)
    fits = matrix.stride(1) == 1 and step % 8 == 0 and step >= matrix.shape[1]
    fits = fits and matrix.data_ptr() % 16 == 0
    return matrix if fits else matrix.clone(memory_format=torch.contiguous_format)


def chunk_rows(
    weight: Tensor, tiling: Tiling, *, multiprocessors: int, store: bool, workspace_bytes: int
) -> int:
    """Return rows per chunk: those that fit the workspace, or with stored E, between half and all.

    With stored E it is the multiple of 256 whose product E W best fills whole waves of 128 x 256
    tiles; of equals, the fewest. On an H200 that gave 720 to 756 TFLOP/s, against 640 to 690 for
    others (docs/kernels.md). Only speed depends on it.

    Args:
        weight: The head (V, D).
        tiling: The cut of the kernel.
        multiprocessors: Those of the card, one tile each a wave.
        store: Whether E is stored.
        workspace_bytes: Bound on the temporary memory of a chunk.

    Returns:
        The number of rows, at least one tile.
    """
    words, width = weight.shape
    shifted = weight.dtype == torch.float16
    row_bytes = fused_row_bytes(words, width, tiling, store=store, shifted=shifted)
    most = max(tiling.block_m, workspace_bytes // row_bytes)
    if not store or most < 512:
        return most

    def filled(rows: int) -> float:
        tiles = rows // 128 * math.ceil(width / 256)
        return tiles / (math.ceil(tiles / multiprocessors) * multiprocessors)

    return max(range(math.ceil(most / 512) * 256, most + 1, 256), key=filled)


class LogpsChunk(NamedTuple):
    """This record holds one chunk of rows and the anchors of its exponentials."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    logit_map: LogitMap
    tiling: Tiling
    anchors: Tensor
    """log2(e) logits of the targets (R,)."""


def anchor(
    hidden: Tensor, weight: Tensor, targets: Tensor, logit_map: LogitMap, tiling: Tiling
) -> LogpsChunk:
    """Return the chunk with the logits of its targets.

    Args:
        hidden: Hidden states of the chunk (R, D), aligned.
        weight: The head (V, D), aligned.
        targets: Words (R,), each in [0, V).
        logit_map: The map from products to logits.
        tiling: The cut of the kernel.

    Returns:
        The arguments and the anchors.
    """
    anchors = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    cap, gain = units(logit_map)
    kernels.target_logits[(len(hidden),)](
        hidden, weight, targets, _bias(logit_map, anchors), anchors, hidden.stride(0),
        weight.stride(0), hidden.shape[1], gain, cap, BIAS=logit_map.bias is not None,
        SOFTCAP=logit_map.softcap is not None, BLOCK_D=512, num_warps=2,
    )  # fmt: skip
    return LogpsChunk(hidden, weight, targets, logit_map, tiling, anchors)


class Sums(NamedTuple):
    """Row sums of E, and of E log2 E if they are wanted."""

    total: Tensor
    moment: Tensor | None


class Stored(NamedTuple):
    """E of a chunk as the second matmul takes it."""

    e: Tensor
    """2^-level E (R, V) in the hidden dtype, a view of wider rows."""
    levels: Tensor | None
    """The levels (R,), float32; None where all are 0, as in bfloat16."""


def exponentials(chunk: LogpsChunk, sums: Sums, *, store: bool) -> Stored | None:
    """Fill `sums`; return E if `store`."""
    total, moment = sums
    tiles = triton.cdiv(len(chunk.weight), chunk.tiling.block_n)
    parts = total.new_empty(len(total), tiles)
    moments = parts if moment is None else torch.empty_like(parts)
    shifted = store and chunk.hidden.dtype == torch.float16
    shifts = torch.empty_like(parts) if shifted else parts
    e = _launch(
        chunk, _Outputs(parts, moments, shifts), None,
        entropy=moment is not None, store=store, shifted=shifted,
    )  # fmt: skip
    block_t = triton.next_power_of_2(tiles)
    pairs = [(parts, total)] if moment is None else [(parts, total), (moments, moment)]
    for part, out in pairs:
        kernels.add_tiles[(len(total),)](part, out, tiles, BLOCK_T=block_t, num_warps=4)
    if e is None:
        return None
    words = len(chunk.weight)
    if not shifted:
        return Stored(e[:, :words], None)
    levels = torch.empty_like(total)
    kernels.level_tiles[(len(total),)](
        e, shifts, levels, words, tiles, e.stride(0) // 8, TILE=chunk.tiling.block_n,
        BLOCK_T=block_t, BLOCK=4096, num_warps=8,
    )  # fmt: skip
    return Stored(e[:, :words], levels)


def weighted_exponentials(chunk: LogpsChunk, alphas: Tensor, betas: Tensor) -> Tensor:
    """Return E (alpha + beta log2 E) (R, V) in bfloat16, a view of wider rows."""
    e = _launch(
        chunk, _Outputs(alphas, alphas, alphas), (alphas, betas),
        entropy=False, store=True, shifted=False,
    )  # fmt: skip
    assert e is not None
    return e[:, : len(chunk.weight)]


class _Outputs(NamedTuple):
    """Numbers per row and tile (R, tiles); any tensor where they are not written."""

    sums: Tensor
    moments: Tensor
    shifts: Tensor


def _launch(
    chunk: LogpsChunk,
    outputs: _Outputs,
    weights: tuple[Tensor, Tensor] | None,
    *,
    entropy: bool,
    store: bool,
    shifted: bool,
) -> Tensor | None:
    hidden, weight, targets, logit_map, plan, anchors = chunk
    (rows, width), words = hidden.shape, len(weight)
    cap, gain = units(logit_map)
    e = hidden.new_empty(rows, padded(words)) if store else None
    matrices = (hidden, weight, hidden if e is None else e)
    alphas, betas = (anchors, anchors) if weights is None else weights
    programs = multiprocessors(hidden.device)
    options = {} if plan.arch is None else {"arch": plan.arch}
    kernels.exponentials[(programs,)](
        *_operands(matrices, plan), anchors, targets, _bias(logit_map, anchors), *outputs,
        alphas, betas, rows, words, width // 8, *(x.stride(0) // 8 for x in matrices), gain, cap,
        BIAS=logit_map.bias is not None, SOFTCAP=logit_map.softcap is not None,
        ENTROPY=entropy, STORE=store, WEIGHTED=weights is not None, SHIFTED=shifted,
        DESCRIPTORS=plan.descriptors, EVEN_K=width % plan.block_k == 0, FLATTEN=plan.flatten,
        BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_K=plan.block_k, GROUP_M=plan.group_m,
        PROGRAMS=programs, num_warps=plan.num_warps, num_stages=plan.num_stages, **options,
    )  # fmt: skip
    return e


def _operands(matrices: tuple[Tensor, Tensor, Tensor], plan: Tiling) -> tuple[Any, ...]:
    """Return hidden states, head and E as the kernel reads and writes them."""
    if not plan.descriptors:
        return matrices
    e_width = plan.block_k if matrices[2] is matrices[0] else plan.block_n
    blocks = (plan.block_m, plan.block_k), (plan.block_n, plan.block_k), (plan.block_m, e_width)
    return tuple(
        TensorDescriptor.from_tensor(matrix, list(block))
        for matrix, block in zip(matrices, blocks, strict=True)
    )


def units(logit_map: LogitMap) -> tuple[float, float]:
    """Return (cap, gain) as `kernels.scaled_logits` takes them, in units of log 2."""
    log2_e = math.log2(math.e)
    if logit_map.softcap is None:
        return 1.0, logit_map.gain * log2_e
    cap = logit_map.softcap / logit_map.temperature * log2_e
    return cap, logit_map.logit_scale / logit_map.softcap


def _bias(logit_map: LogitMap, unused: Tensor) -> Tensor:
    return unused if logit_map.bias is None else logit_map.bias.contiguous()


def multiprocessors(device: torch.device) -> int:
    """Return how many programs run at a time: one a multiprocessor, two in the interpreter."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
