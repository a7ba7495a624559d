"""Launching the fused kernels: tiling, chunking, alignment, and the first pass over a chunk."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.kernels import _triton_kernels as kernels
from rlkit.kernels._head import LogitMap
from rlkit.runtime.triton import TensorDescriptor, triton


class Tiling(NamedTuple):
    """Launch parameters of `kernels.exponentials`."""

    block_m: int = 128
    block_n: int = 256
    block_k: int = 64
    group_m: int = 16
    """Row tiles that share a panel of words in the L2 cache."""
    num_warps: int = 8
    num_stages: int = 3


def tiling() -> Tiling:
    """One tiling for all shapes and modes, so that a row's logps depend on nothing but the row.

    Of 18 measured on an H200, the fastest or within 2% of it at D = 1536 and D = 4096, with and
    without storing E (docs/kernels.md).
    """
    return Tiling()


def check(hidden: Tensor) -> None:
    """ValueError unless the fused kernels take `hidden`."""
    if hidden.dtype != torch.bfloat16 or hidden.shape[1] % 8:
        raise ValueError(
            "impl=triton needs hidden in bfloat16 with D a multiple of 8, "
            f"got {hidden.dtype}, D = {hidden.shape[1]}"
        )


def aligned(matrix: Tensor) -> Tensor:
    """`matrix` as the tensor copy engine takes it: dense rows on 16-byte boundaries."""
    step = matrix.stride(0)
    fits = matrix.stride(1) == 1 and step % 8 == 0 and step >= matrix.shape[1]
    fits = fits and matrix.data_ptr() % 16 == 0
    return matrix if fits else matrix.clone(memory_format=torch.contiguous_format)


def chunk_rows(weight: Tensor, *, store: bool, workspace_bytes: int) -> int:
    """Rows per chunk: what fits the workspace, or with stored E, between half of that and it.

    There, the multiple of 256 (the fewest, of equals) whose product E W fills whole waves of
    128 x 256 tiles on 132 multiprocessors: 720 to 756 TFLOP/s on an H200, against 640 to 690 for
    others (docs/kernels.md). Only speed depends on it.
    """
    words, width = weight.shape
    row_bytes = 8 * (words // tiling().block_n + 2)
    if store:
        row_bytes += 2 * _padded(words) + 4 * width
    most = max(tiling().block_m, workspace_bytes // row_bytes)
    if not store or most < 512:
        return most

    def filled(rows: int) -> float:
        tiles = rows // 128 * math.ceil(width / 256)
        return tiles / (math.ceil(tiles / 132) * 132)

    return max(range(math.ceil(most / 512) * 256, most + 1, 256), key=filled)


class Chunk(NamedTuple):
    """One chunk of rows and the anchors of its exponentials."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    logit_map: LogitMap
    anchors: Tensor
    """log2(e) logits of the targets (R,)."""


def anchor(hidden: Tensor, weight: Tensor, targets: Tensor, logit_map: LogitMap) -> Chunk:
    """The chunk with the logits of its targets."""
    anchors = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    cap, gain = units(logit_map)
    kernels.target_logits[(len(hidden),)](
        hidden, weight, targets, _bias(logit_map, anchors), anchors, hidden.stride(0),
        weight.stride(0), hidden.shape[1], gain, cap, BIAS=logit_map.bias is not None,
        SOFTCAP=logit_map.softcap is not None, BLOCK_D=512, num_warps=2,
    )  # fmt: skip
    return Chunk(hidden, weight, targets, logit_map, anchors)


class Sums(NamedTuple):
    """Row sums of E, and of E log2 E if they are wanted."""

    total: Tensor
    moment: Tensor | None


def exponentials(chunk: Chunk, sums: Sums, *, store: bool) -> Tensor | None:
    """Fills `sums`; returns E (R, V) in bfloat16 if `store`, a view of wider rows."""
    plan, total = tiling(), sums.total
    tiles = triton.cdiv(len(chunk.weight), plan.block_n)
    parts = total.new_empty(len(total), tiles)
    moments = parts if sums.moment is None else torch.empty_like(parts)
    e = _launch(chunk, parts, moments, None, entropy=sums.moment is not None, store=store)
    pairs = [(parts, total)] if sums.moment is None else [(parts, total), (moments, sums.moment)]
    for part, out in pairs:
        kernels.add_tiles[(len(total),)](
            part, out, tiles, BLOCK_T=triton.next_power_of_2(tiles), num_warps=4
        )
    return e


def weighted_exponentials(chunk: Chunk, alphas: Tensor, betas: Tensor) -> Tensor:
    """E (alpha + beta log2 E) (R, V) in bfloat16, a view of wider rows."""
    e = _launch(chunk, alphas, alphas, (alphas, betas), entropy=False, store=True)
    assert e is not None
    return e


def _launch(
    chunk: Chunk,
    sums: Tensor,
    moments: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    *,
    entropy: bool,
    store: bool,
) -> Tensor | None:
    hidden, weight, targets, logit_map, anchors = chunk
    (rows, width), words = hidden.shape, len(weight)
    plan = tiling()
    cap, gain = units(logit_map)
    e = hidden.new_empty(rows, _padded(words)) if store else None
    h_desc = TensorDescriptor.from_tensor(hidden, [plan.block_m, plan.block_k])
    w_desc = TensorDescriptor.from_tensor(weight, [plan.block_n, plan.block_k])
    e_desc = h_desc
    if e is not None:
        e_desc = TensorDescriptor.from_tensor(e, [plan.block_m, plan.block_n])
    alphas, betas = (anchors, anchors) if weights is None else weights
    programs = _multiprocessors(hidden.device)
    kernels.exponentials[(programs,)](
        h_desc, w_desc, e_desc, anchors, targets, _bias(logit_map, anchors), sums, moments,
        alphas, betas, rows, words, width, gain, cap,
        BIAS=logit_map.bias is not None, SOFTCAP=logit_map.softcap is not None,
        ENTROPY=entropy, STORE=store, WEIGHTED=weights is not None,
        BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_K=plan.block_k, GROUP_M=plan.group_m,
        PROGRAMS=programs, num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return None if e is None else e[:, :words]


def units(logit_map: LogitMap) -> tuple[float, float]:
    """(cap, gain) as `kernels.scaled_logits` takes them, in units of log 2."""
    log2_e = math.log2(math.e)
    if logit_map.softcap is None:
        return 1.0, logit_map.gain * log2_e
    cap = logit_map.softcap / logit_map.temperature * log2_e
    return cap, logit_map.logit_scale / logit_map.softcap


def _bias(logit_map: LogitMap, unused: Tensor) -> Tensor:
    return unused if logit_map.bias is None else logit_map.bias.contiguous()


def _padded(words: int) -> int:
    """Words per row of E: its rows start at multiples of 128 bytes."""
    return (words + 63) // 64 * 64


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
