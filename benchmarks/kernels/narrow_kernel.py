# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""One Triton kernel for x W^T of a few rows, which reads W as early and as evenly as it can.

Decoding reads each weight once for at most 64 rows, so that only the bytes of W count. The inputs
are cut into parts as well as the outputs, so that all multiprocessors have work. The last program
of a block of outputs adds the parts, in their order: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

MOST_ROWS = 64


class NarrowTiling(NamedTuple):
    """This record cuts one product into programs."""

    block_n: int
    """Outputs of a program."""
    block_k: int
    """Inputs of a step."""
    splits: int
    """Parts of the inputs, each of a whole number of steps."""
    num_warps: int
    num_stages: int
    early: bool
    """Start before the kernel ahead has ended and load W meanwhile (needs compute capability 9)."""


@triton.jit(do_not_specialize=["num_rows"])
def _narrow_kernel(
    out, x, w, bias, parts, arrived, num_rows, num_columns, x_step, out_step,
    K: tl.constexpr, SPLITS: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr, launch_pdl: tl.constexpr,
):  # fmt: skip
    block, part = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = columns < num_columns
    rows = tl.arange(0, BLOCK_M)
    inside = rows < num_rows
    inputs = tl.arange(0, BLOCK_K)
    depth: tl.constexpr = K // SPLITS
    first = part * depth
    weights = w + columns[None, :].to(tl.int64) * K + (first + inputs)[:, None]
    # The weights of the first step do not depend on the kernel ahead.
    ahead = tl.load(weights, mask=real[None, :], other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    values = x + rows[:, None] * x_step + (first + inputs)[None, :]
    acc = tl.dot(tl.load(values, mask=inside[:, None], other=0.0), ahead, input_precision="ieee")
    for start in range(BLOCK_K, depth, BLOCK_K):
        more = tl.load(weights + start, mask=real[None, :], other=0.0)
        some = tl.load(values + start, mask=inside[:, None], other=0.0)
        acc = tl.dot(some, more, acc, input_precision="ieee")
    kind = out.dtype.element_ty
    to = out + rows[:, None] * out_step + columns[None, :]
    kept = inside[:, None] & real[None, :]
    last = True
    if SPLITS > 1:
        tile = rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        own = parts + block * (SPLITS * BLOCK_M * BLOCK_N) + tile
        tl.store(own + part * (BLOCK_M * BLOCK_N), acc)
        # All threads have stored before the one that counts says so.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + block, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.debug_barrier()
            acc = tl.load(own, cache_modifier=".cg")
            for other in tl.static_range(1, SPLITS):
                acc += tl.load(own + other * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            tl.store(arrived + block, 0)  # for the next launch
    if last:
        if BIAS:
            acc += tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)[None, :]
        tl.store(to, acc.to(kind), mask=kept)


class NarrowProduct:
    """This computes x W^T + bias of up to 64 rows with one tiling, and owns its workspace."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tile: NarrowTiling) -> None:
        """Take a dense weight (N, K); raises ValueError when `tile` does not divide K."""
        num_outputs, self._depth = weight.shape
        if not weight.is_contiguous() or self._depth % (tile.splits * tile.block_k):
            raise ValueError(
                f"the inputs of a dense weight must be a multiple of {tile.splits * tile.block_k}, "
                f"got {self._depth}"
            )
        self._weight, self._bias, self._tile = weight, bias, tile
        self._blocks = triton.cdiv(num_outputs, tile.block_n)
        size = self._blocks * tile.splits * MOST_ROWS * tile.block_n if tile.splits > 1 else 1
        self._parts = torch.empty(size, dtype=torch.float32, device=weight.device)
        self._arrived = torch.zeros(self._blocks, dtype=torch.int32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (M, N) for dense rows x (M, K), M <= 64."""
        tile, num_outputs = self._tile, self._weight.shape[0]
        out = x.new_empty(len(x), num_outputs)
        _narrow_kernel[(self._blocks, tile.splits)](
            out, x, self._weight, self._weight if self._bias is None else self._bias,
            self._parts, self._arrived, len(x), num_outputs, x.stride(0), out.stride(0),
            K=self._depth, SPLITS=tile.splits, BIAS=self._bias is not None,
            BLOCK_M=MOST_ROWS, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            EARLY=tile.early, launch_pdl=tile.early,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        return out
