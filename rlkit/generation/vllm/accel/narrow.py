# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""One Triton kernel for x [W; A]^T of few rows, with W in 16 bits or as codes of e4m3.

Decoding reads each weight once for some 64 rows, so only the bytes of W count, and codes are half
as many. They become numbers of x's dtype in registers, exactly, and the scale of a row multiplies
the sum in float32. So the result is that of the dequantised weight up to the order of a sum. The
inputs are cut into parts as well as the outputs, so that all multiprocessors have work. The last
program of a block of outputs adds the parts in their order: the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

_BLOCK_M = 64
"""Rows of one program; further rows read W again, from the cache of the device."""
MOST_ROWS = 256
"""Most rows of a product whose inputs are cut; for more rows, others are better anyway."""
_PROGRAMS = 264
"""Programs that a product is cut into, about: two for each multiprocessor of an H100."""
_MOST_SPLITS = 16
_MOST_BLOCKS = 1024
"""Blocks of a product whose inputs are cut; a larger one has enough programs without."""
_MOST_PARTS = 2**17
"""Outputs of all parts of such a product; each has 64 sums, so that they take 34 MB."""
SIZES = ((128, 128, 8, 3), (64, 128, 4, 4), (128, 128, 8, 4), (64, 128, 4, 5), (128, 128, 4, 3))
"""Outputs and inputs of a program's step, its warps and stages, that are worth timing."""
GRAIN = 16
"""The inputs must be a multiple of this."""


class NarrowTiling(NamedTuple):
    """This record cuts one product into programs."""

    block_n: int
    """Outputs of a program, at most 256."""
    block_k: int
    """Inputs of a step."""
    splits: int
    """Parts of the inputs, each of a whole number of steps."""
    num_warps: int
    num_stages: int
    early: bool = False
    """Start before the kernel ahead has ended (needs compute capability 9)."""


class NarrowWeight(NamedTuple):
    """A weight W, as the kernel reads it."""

    values: Tensor
    """(out, in), dense: uint8 codes of e4m3, or numbers of x's dtype."""
    scale: Tensor | None
    """(out,) float32, of codes; None = W has numbers."""
    workspace: Workspace


class Workspace:
    """It holds sums of parts, and a count of arrived programs that is zero between launches.

    The products of one stream share it, as they run one after the other. It never moves: CUDA
    graphs hold its addresses.
    """

    def __init__(self, device: torch.device) -> None:
        size = _MOST_PARTS * _BLOCK_M
        self.parts = torch.empty(size, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(_MOST_BLOCKS, dtype=torch.int32, device=device)
        self.early = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
        """Whether kernels may start before the one ahead has ended."""

    def fits(self, blocks: int, outputs: int) -> bool:
        """Return whether it holds `blocks`, each with sums of so many `outputs` of all parts."""
        return blocks <= _MOST_BLOCKS and blocks * outputs <= _MOST_PARTS


def tiling(num_outputs: int, num_inputs: int, num_more: int = 0) -> NarrowTiling:
    """Choose the cut of a product; its parts divide the inputs, a multiple of `GRAIN`.

    It is the same for any number of rows, so that a layer has one kernel to compile.
    """
    block_n, block_k, num_warps, num_stages = SIZES[num_outputs < 128 * _PROGRAMS // 2]
    block_k = next(size for size in (block_k, 64, 32, GRAIN) if num_inputs % size == 0)
    blocks = triton.cdiv(num_outputs, block_n) + triton.cdiv(num_more, block_n)
    splits = _splits(blocks, block_n, num_inputs // block_k, _PROGRAMS)
    return NarrowTiling(block_n, block_k, splits, num_warps, num_stages)


def tilings(num_outputs: int, num_inputs: int, num_more: int = 0) -> Iterator[NarrowTiling]:
    """Yield cuts of a product that are worth timing."""
    for programs in (_PROGRAMS, _PROGRAMS // 2, 2 * _PROGRAMS):
        for block_n, block_k, num_warps, num_stages in SIZES:
            if num_inputs % block_k == 0:
                blocks = triton.cdiv(num_outputs, block_n) + triton.cdiv(num_more, block_n)
                splits = _splits(blocks, block_n, num_inputs // block_k, programs)
                yield NarrowTiling(block_n, block_k, splits, num_warps, num_stages)


def _splits(blocks: int, block_n: int, steps: int, programs: int) -> int:
    """Return how many parts of `steps` make about so many `programs` of `blocks`."""
    fitting = [n for n in range(1, min(steps, _MOST_SPLITS) + 1) if steps % n == 0]
    most = MOST_ROWS // _BLOCK_M * blocks
    room = [
        n for n in fitting if n == 1 or (most <= _MOST_BLOCKS and most * n * block_n <= _MOST_PARTS)
    ]
    return min(room, key=lambda n: (abs(blocks * n - programs), n))


@triton.jit
def _numbers(codes, kind: tl.constexpr, PACKED: tl.constexpr):
    """Return what codes of e4m3 stand for, in the dtype `kind`.

    A card converts to float16 alone, and 16 numbers a clock and multiprocessor. So for bfloat16 two
    codes become two numbers by integer operations. The sign goes to bit 15, exponent and mantissa
    to bits 10 to 4, and a factor of 2^120 makes up for the difference of the exponents' biases. All
    of that is exact, for subnormal numbers too. NaN alone is not kept, and no weight is NaN.
    """
    if PACKED:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 both, sign, factor, zero;
            mov.b32 factor, 0x7b807b80;
            mov.b32 zero, 0x80008000;
            cvt.u32.u16 both, $1;
            prmt.b32 both, both, 0, 0x4140;
            shl.b32 both, both, 4;
            and.b32 sign, both, 0x08000800;
            mad.lo.u32 both, sign, 15, both;
            fma.rn.bf16x2 $0, both, factor, zero;
            }
            """,
            "=r,h",
            args=[codes],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        return codes.to(tl.float8e4nv, bitcast=True).to(kind)


@triton.jit
def _dot(x, w, rows, inside, columns, real, first, x_step, K: tl.constexpr, DEPTH: tl.constexpr,
         BLOCK_K: tl.constexpr, STAGES: tl.constexpr, CODES: tl.constexpr,
         PACKED: tl.constexpr):  # fmt: skip
    """Return W x^T, (outputs, rows), over one part of the inputs."""
    inputs = tl.arange(0, BLOCK_K)
    kind = x.dtype.element_ty
    values = x + rows[None, :].to(tl.int64) * x_step + (first + inputs)[:, None]
    acc = tl.zeros((columns.shape[0], rows.shape[0]), dtype=tl.float32)
    weights = w + columns[:, None].to(tl.int64) * K + (first + inputs)[None, :]
    for start in tl.range(0, DEPTH, BLOCK_K, num_stages=STAGES):
        some = tl.load(weights + start, mask=real[:, None], other=0)
        if CODES:
            some = _numbers(some, kind, PACKED)
        more = tl.load(values + start, mask=inside[None, :], other=0.0)
        acc = tl.dot(some, more, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["num_rows"])
def _product_kernel(
    out, x, w, scale, a, bias, parts, arrived, num_rows, num_outputs, num_more, x_step, out_step,
    K: tl.constexpr, SPLITS: tl.constexpr, CODES: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, PACKED: tl.constexpr, EARLY: tl.constexpr,
    launch_pdl: tl.constexpr,
):  # fmt: skip
    block, part, of_rows = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = of_rows * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_rows
    of_weight = tl.cdiv(num_outputs, BLOCK_N)
    first = part * DEPTH
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    place = columns
    real = columns < num_outputs
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if block < of_weight:
        acc = _dot(x, w, rows, inside, columns, real, first, x_step, K, DEPTH, BLOCK_K, STAGES,
                   CODES, PACKED)  # fmt: skip
        if CODES:
            acc *= tl.load(scale + columns, mask=real, other=0.0)[:, None]
        if BIAS and part == 0:
            acc += tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)[:, None]
    else:
        columns -= of_weight * BLOCK_N
        real = columns < num_more
        place = num_outputs + columns
        # Two stages of numbers take no more shared memory than the codes' own.
        acc = _dot(x, a, rows, inside, columns, real, first, x_step, K, DEPTH, BLOCK_K, 2,
                   False, False)  # fmt: skip
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


def product(
    x: Tensor,
    weight: NarrowWeight,
    a: Tensor | None,
    bias: Tensor | None,
    *,
    padding: int = 0,
    tile: NarrowTiling | None = None,
) -> Tensor:
    """Return [x W^T + bias, x A^T, padding of any value], rounded once, in the dtype of x.

    Args:
        x: (rows, in) with dense rows.
        weight: W, (out, in); the inputs are a multiple of `GRAIN`.
        a: (more, in) dense rows in the dtype of x; None = none.
        bias: (out,); None = none.
        padding: Columns behind the others.
        tile: The cut; None = that of `tiling`.

    Returns:
        (rows, out + more + padding).

    Raises:
        ValueError: The workspace is too small for `tile`, or `tile` does not divide the inputs.
    """
    values, scale, workspace = weight
    num_outputs, num_inputs = values.shape
    num_more = 0 if a is None else len(a)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(len(x), num_outputs + num_more + padding)
    if tile is None:
        tile = tiling(num_outputs, num_inputs, num_more)
        # On an H200 an early start won where the inputs are cut, and lost where they are not.
        tile = tile._replace(early=workspace.early and tile.splits > 1)
    blocks = triton.cdiv(num_outputs, tile.block_n) + triton.cdiv(num_more, tile.block_n)
    of_rows = triton.cdiv(len(x), _BLOCK_M)
    if num_inputs % (tile.splits * tile.block_k) or (
        tile.splits > 1 and not workspace.fits(blocks * of_rows, tile.splits * tile.block_n)
    ):
        raise ValueError(
            f"a cut must divide {num_inputs} inputs, and its parts must fit, got {tile}"
        )
    packed = x.is_cuda and x.dtype is torch.bfloat16
    _product_kernel[(blocks, tile.splits, of_rows)](
        out, x, values, values if scale is None else scale, x if a is None else a,
        values if bias is None else bias, workspace.parts, workspace.arrived, len(x), num_outputs,
        num_more, x.stride(0), out.stride(0), K=num_inputs, SPLITS=tile.splits,
        CODES=scale is not None, BIAS=bias is not None, BLOCK_M=_BLOCK_M, BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, DEPTH=num_inputs // tile.splits, STAGES=tile.num_stages,
        PACKED=packed, EARLY=tile.early, launch_pdl=tile.early, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    return out
