# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""One Triton kernel for x [W; A]^T of few rows, with W in e4m3: decoding reads half the bytes.

Codes become numbers of x's dtype in registers, exactly, and the scale of a row multiplies the sum
in float32. So the result is that of the dequantised weight up to the order of a sum. The inputs are
cut into parts as well as the outputs, so that all multiprocessors have work. The last program of a
block of outputs adds the parts in their order: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

_MOST_BLOCK_M = 64
"""Rows of one program; further rows read W again, from the cache of the device."""
_PROGRAMS = 264
"""Programs that a product is cut into, about: two for each multiprocessor of an H100."""
_MOST_SPLITS = 16
_MOST_CELLS = 1024
"""Programs of a product whose inputs are cut; a larger one has enough of them without."""
_MOST_BLOCK_N = 128
GRAIN = 16
"""The inputs must be a multiple of this."""


class Fp8Tiling(NamedTuple):
    """This record cuts one product into programs."""

    block_m: int
    block_n: int
    """Outputs of a program."""
    block_k: int
    """Inputs of a step."""
    splits: int
    """Parts of the inputs, each of a whole number of steps."""


def tiling(num_rows: int, num_outputs: int, num_inputs: int) -> Fp8Tiling:
    """Choose the cut of a product; its parts divide the inputs, a multiple of `GRAIN`."""
    block_m = min(_MOST_BLOCK_M, max(16, triton.next_power_of_2(num_rows)))
    block_n = 128 if num_outputs >= 128 * _PROGRAMS // 2 else 64
    block_k = next(size for size in (128, 64, 32, GRAIN) if num_inputs % size == 0)
    steps = num_inputs // block_k
    blocks = triton.cdiv(num_outputs, block_n) * triton.cdiv(num_rows, block_m)
    fitting = [n for n in range(1, min(steps, _MOST_SPLITS) + 1) if steps % n == 0]
    splits = min(fitting, key=lambda n: (abs(blocks * n - _PROGRAMS), n))
    if 2 * blocks * splits > _MOST_CELLS:  # the rows of A add at most as many
        splits = 1
    return Fp8Tiling(block_m, block_n, block_k, splits)


@triton.jit
def _dot(acc, x, w, rows, inside, columns, real, first, x_step, K: tl.constexpr,
         DEPTH: tl.constexpr, BLOCK_K: tl.constexpr, CODES: tl.constexpr):  # fmt: skip
    """Add W x^T, (outputs, rows), over one part of the inputs."""
    inputs = tl.arange(0, BLOCK_K)
    kind = x.dtype.element_ty
    weights = w + columns[:, None].to(tl.int64) * K + (first + inputs)[None, :]
    values = x + rows[None, :].to(tl.int64) * x_step + (first + inputs)[:, None]
    for start in range(0, DEPTH, BLOCK_K):
        some = tl.load(weights + start, mask=real[:, None], other=0)
        if CODES:
            some = some.to(tl.float8e4nv, bitcast=True).to(kind)
        more = tl.load(values + start, mask=inside[None, :], other=0.0)
        acc = tl.dot(some, more, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["num_rows"])
def _product_kernel(
    out, x, codes, scale, a, bias, parts, arrived, num_rows, num_outputs, num_more, x_step,
    out_step, K: tl.constexpr, SPLITS: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    block, part, of_rows = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = of_rows * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_rows
    of_codes = tl.cdiv(num_outputs, BLOCK_N)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    first = part * DEPTH
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    place = columns
    real = columns < num_outputs
    if block < of_codes:
        acc = _dot(acc, x, codes, rows, inside, columns, real, first, x_step, K, DEPTH, BLOCK_K,
                   True)  # fmt: skip
        acc *= tl.load(scale + columns, mask=real, other=0.0)[:, None]
        if BIAS and part == 0:
            acc += tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)[:, None]
    else:
        columns -= of_codes * BLOCK_N
        real = columns < num_more
        place = num_outputs + columns
        acc = _dot(acc, x, a, rows, inside, columns, real, first, x_step, K, DEPTH, BLOCK_K, False)
    to = out + rows[None, :].to(tl.int64) * out_step + place[:, None]
    kept = inside[None, :] & real[:, None]
    last = True
    if SPLITS > 1:
        tile = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        cell = of_rows * tl.num_programs(0) + block
        own = parts + cell.to(tl.int64) * (SPLITS * BLOCK_M * BLOCK_N) + tile
        tl.store(own + part * (BLOCK_M * BLOCK_N), acc)
        # All threads have stored before the one that counts says so.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + cell, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.debug_barrier()
            acc = tl.load(own, cache_modifier=".cg")
            for other in tl.static_range(1, SPLITS):
                acc += tl.load(own + other * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            tl.store(arrived + cell, 0)  # for the next launch
    if last:
        tl.store(to, acc.to(out.dtype.element_ty), mask=kept)


class Workspace:
    """It holds sums of parts, and a count of arrived programs that is zero between launches.

    The products of one stream share it, as they run one after the other. It never moves: CUDA
    graphs hold its addresses.
    """

    def __init__(self, device: torch.device) -> None:
        size = _MOST_CELLS * _MOST_BLOCK_M * _MOST_BLOCK_N
        self.parts = torch.empty(size, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(_MOST_CELLS, dtype=torch.int32, device=device)


class Fp8Rows(NamedTuple):
    """A weight W in e4m3, as the kernel reads it."""

    codes: Tensor
    """(out, in) uint8, dense."""
    scale: Tensor
    """(out,) float32."""
    workspace: Workspace


def product(
    x: Tensor,
    weight: Fp8Rows,
    a: Tensor | None,
    bias: Tensor | None,
    *,
    padding: int = 0,
) -> Tensor:
    """Return [x W^T + bias, x A^T, padding of any value], rounded once, in the dtype of x.

    Args:
        x: (rows, in) with dense rows.
        weight: W, (out, in); the inputs are a multiple of `GRAIN`.
        a: (more, in) dense rows in the dtype of x; None = none.
        bias: (out,); None = none.
        padding: Columns behind the others.

    Returns:
        (rows, out + more + padding).
    """
    codes, scale, workspace = weight
    num_outputs, num_inputs = codes.shape
    num_more = 0 if a is None else len(a)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(len(x), num_outputs + num_more + padding)
    tile = tiling(len(x), num_outputs, num_inputs)
    blocks = triton.cdiv(num_outputs, tile.block_n) + triton.cdiv(num_more, tile.block_n)
    of_rows = triton.cdiv(len(x), tile.block_m)
    _product_kernel[(blocks, tile.splits, of_rows)](
        out, x, codes, scale, codes if a is None else a, scale if bias is None else bias,
        workspace.parts, workspace.arrived, len(x), num_outputs, num_more, x.stride(0),
        out.stride(0), K=num_inputs, SPLITS=tile.splits, BIAS=bias is not None,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        DEPTH=num_inputs // tile.splits, num_warps=4, num_stages=3 if tile.block_n == 128 else 4,
    )  # fmt: skip
    return out
