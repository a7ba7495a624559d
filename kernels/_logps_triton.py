"""Fused `selected_logps` on Hopper GPUs: exponentials in the epilogue of the head's matmul.

Anchored at the target, E_v = exp(z_v - z_y) with E_y = 0 needs no running maximum, so one pass
over the products suffices, and E in bfloat16 (float32's exponents) goes straight into a BLAS
matmul: S = sum_v E_v, logps = -log1p(S), dlogps/dh = gain S/(1+S) (W_y - E W / S).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rlkit.kernels import _logps_torch
from rlkit.kernels import _triton_kernels as kernels
from rlkit.kernels._head import LogitMap, matmul, working
from rlkit.kernels._logps_torch import Forward, chunks

_OVERFLOW = 2.0**100
"""Rows with S above it (a word 69 nats above the target) are done again by `_logps_torch`."""


class Tiling(NamedTuple):
    """Launch parameters of `exponentials`."""

    block_m: int = 128
    block_n: int = 256
    block_k: int = 64
    group_m: int = 8
    split: bool = False
    flatten: bool = True
    num_warps: int = 8
    num_stages: int = 3
    programs_per_sm: int = 1

    @property
    def words(self) -> int:
        """Words per row sum."""
        return self.block_n // 2 if self.split else self.block_n


def tiling() -> Tiling:
    """One tiling for all shapes and modes, so that a row's logps depend on nothing but the row.

    The fastest of 13 measured on an H200 at both D = 1536 and D = 4096 (docs/kernels.md).
    """
    return Tiling()


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    *,
    entropy: bool,
    jacobian: bool,
    workspace_bytes: int,
) -> Forward:
    """As `_logps_torch.forward`, for bfloat16."""
    if hidden.dtype != torch.bfloat16 or hidden.shape[1] % 8:
        raise ValueError(
            "impl=triton needs hidden in bfloat16 with D a multiple of 8, "
            f"got {hidden.dtype}, D = {hidden.shape[1]}"
        )
    hidden, weight = aligned(hidden), aligned(weight)
    rows = hidden.shape[0]
    empty = hidden.new_empty(0, dtype=torch.float32)
    out = Forward(
        logps=empty.new_empty(rows),
        entropy=empty.new_empty(rows) if entropy else None,
        doubt=empty.new_empty(rows),
        direction=torch.empty_like(hidden) if jacobian else None,
    )
    totals = empty.new_empty(rows)
    plan = tiling()
    for chunk in chunks(rows, 1, _chunk_rows(weight, plan, jacobian, workspace_bytes)):
        parts = Forward(
            out.logps[chunk],
            None if out.entropy is None else out.entropy[chunk],
            out.doubt[chunk],
            None if out.direction is None else out.direction[chunk],
        )
        _forward_chunk(hidden[chunk], weight, targets[chunk], logit_map, plan, parts, totals[chunk])
    _redo_overflows(hidden, weight, targets, logit_map, out, totals, workspace_bytes)
    return out


def aligned(matrix: Tensor) -> Tensor:
    """`matrix` as the tensor copy engine takes it: dense rows on 16-byte boundaries."""
    step = matrix.stride(0)
    fits = matrix.stride(1) == 1 and step % 8 == 0 and step >= matrix.shape[1]
    fits = fits and matrix.data_ptr() % 16 == 0
    return matrix if fits else matrix.clone(memory_format=torch.contiguous_format)


def _chunk_rows(weight: Tensor, plan: Tiling, jacobian: bool, workspace_bytes: int) -> int:
    """The largest power of two that fits the workspace, at least one tile.

    cuBLAS multiplies E by W at 720 TFLOP/s for 1024, 2048 or 4096 rows and at 640 to 690 for odd
    multiples of 128 between them (H200, docs/kernels.md).
    """
    words, width = weight.shape
    row_bytes = 8 * (words // plan.words + 2)
    if jacobian:
        row_bytes += 2 * _padded(words) + 4 * width
    return max(plan.block_m, 1 << (max(1, workspace_bytes // row_bytes).bit_length() - 1))


def _padded(words: int) -> int:
    """Words per row of E: its rows start at multiples of 128 bytes."""
    return (words + 63) // 64 * 64


def _forward_chunk(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    plan: Tiling,
    out: Forward,
    totals: Tensor,
) -> None:
    rows, width = hidden.shape
    words = weight.shape[0]
    cap, gain = _units(logit_map)
    bias = totals if logit_map.bias is None else logit_map.bias.contiguous()
    flags = {"SOFTCAP": logit_map.softcap is not None, "ENTROPY": out.entropy is not None}
    tiles = triton.cdiv(words, plan.block_n) * (2 if plan.split else 1)
    anchors = torch.empty_like(totals)
    sums = totals.new_empty(rows, tiles)
    moments = totals.new_empty(rows, tiles) if out.entropy is not None else totals
    kernels.target_logits[(rows,)](
        hidden, weight, targets, bias, anchors, hidden.stride(0), weight.stride(0), width,
        gain, cap, BIAS=logit_map.bias is not None, SOFTCAP=flags["SOFTCAP"], BLOCK_D=512,
        num_warps=2,
    )  # fmt: skip
    store = out.direction is not None
    e = hidden.new_empty(rows, _padded(words)) if store else hidden
    h_desc = TensorDescriptor.from_tensor(hidden, [plan.block_m, plan.block_k])
    w_desc = TensorDescriptor.from_tensor(weight, [plan.block_n, plan.block_k])
    e_desc = TensorDescriptor.from_tensor(e, [plan.block_m, plan.words]) if store else h_desc
    programs = plan.programs_per_sm * _multiprocessors(hidden.device)
    kernels.exponentials[(min(programs, triton.cdiv(rows, plan.block_m) * tiles),)](
        h_desc, w_desc, e_desc, anchors, targets, bias, sums, moments, rows, words, width,
        gain, cap, BIAS=logit_map.bias is not None, **flags, STORE=store,
        BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_K=plan.block_k, GROUP_M=plan.group_m,
        SPLIT=plan.split, PROGRAMS=programs, FLATTEN=plan.flatten,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    product = matmul(working(e[:, :words]), working(weight)) if store else totals
    kernels.finish_rows[(rows,)](
        sums, moments, anchors, product, weight, targets, out.logps,
        totals if out.entropy is None else out.entropy, out.doubt,
        hidden if out.direction is None else out.direction, totals,
        weight.stride(0), width, width, tiles, logit_map.gain, cap, **flags, JACOBIAN=store,
        BLOCK_T=triton.next_power_of_2(tiles), BLOCK_D=1024, num_warps=4,
    )  # fmt: skip


def _units(logit_map: LogitMap) -> tuple[float, float]:
    """(cap, gain) as `scaled_logits` takes them, in units of log 2."""
    log2_e = math.log2(math.e)
    if logit_map.softcap is None:
        return 1.0, logit_map.gain * log2_e
    cap = logit_map.softcap / logit_map.temperature * log2_e
    return cap, logit_map.logit_scale / logit_map.softcap


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def _redo_overflows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    out: Forward,
    totals: Tensor,
    workspace_bytes: int,
) -> None:
    """Rows whose target is so unlikely that exponentials anchored at it overflow; also NaNs."""
    index = (~(totals < _OVERFLOW)).nonzero().squeeze(1)
    if index.numel() == 0:
        return
    again = _logps_torch.forward(
        hidden[index],
        weight,
        targets[index],
        logit_map,
        entropy=out.entropy is not None,
        jacobian=out.direction is not None,
        workspace_bytes=workspace_bytes,
    )
    for whole, part in zip(out, again, strict=True):
        if whole is not None and part is not None:
            whole[index] = part
