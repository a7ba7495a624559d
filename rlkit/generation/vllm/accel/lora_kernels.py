# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Triton kernels of vLLM's adapter: y += B h for a few rows, and the copy of an adapter.

Both run where a launch counts. The first runs at every layer of every decoded token, between two
matrix products of 5 to 30 us. The second runs once per step over some 400 small tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

MOST_PARTS = 3
"""Fused parts of a layer: q, k and v."""
_COPY_BLOCK = 4096


class ExpandTiling(NamedTuple):
    """Rows and columns of one program of `expand`, and how it is launched."""

    block_m: int
    block_n: int
    num_warps: int
    early: bool
    """Start before the kernel ahead has ended and load B meanwhile (needs compute capability 9)."""


@triton.jit
def _weights(b, columns, start, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    ranks = start + tl.arange(0, BLOCK_R)
    return tl.load(b + columns[None, :] * RANK + ranks[:, None], mask=(ranks < RANK)[:, None],
                   other=0.0)  # fmt: skip


@triton.jit
def _inputs(low, rows, inside, part, low_step, start, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    ranks = start + tl.arange(0, BLOCK_R)
    return tl.load(low + rows[:, None] * low_step + part * RANK + ranks[None, :],
                   mask=inside[:, None] & (ranks < RANK)[None, :], other=0.0)  # fmt: skip


@triton.jit
def _outputs(base, rows, inside, columns, base_step):
    return tl.load(base + rows[:, None] * base_step + columns[None, :], mask=inside[:, None],
                   other=0.0).to(tl.float32)  # fmt: skip


@triton.jit
def _updated(
    y, on, inputs, weights, low, b, rows, inside, columns, part, low_step, kind: tl.constexpr,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Return round(y + on round(low of the part B^T)), float32; the first ranks are loaded."""
    acc = tl.dot(inputs, weights, input_precision="ieee")
    for start in tl.static_range(BLOCK_R, RANK, BLOCK_R):
        inputs = _inputs(low, rows, inside, part, low_step, start, RANK, BLOCK_R)
        weights = _weights(b, columns, start, RANK, BLOCK_R)
        acc += tl.dot(inputs, weights, input_precision="ieee")
    # Rounded before it is added, as the trainer's own update is.
    update = tl.where(on[:, None] != 0, acc.to(kind).to(tl.float32), 0.0)
    return (y + update).to(kind).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _expand_kernel(
    out, base, low, b, active, num_rows, out_step, base_step, low_step, end_0, end_1,
    RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr, launch_pdl: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    columns = first + tl.arange(0, BLOCK_N)
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    inside = rows < num_rows
    part = (first >= end_0).to(tl.int32) + (first >= end_1).to(tl.int32)
    kind = out.dtype.element_ty
    # Everything is asked for before anything is used: the kernel is as long as its latencies.
    weights = _weights(b, columns, 0, RANK, BLOCK_R)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    inputs = _inputs(low, rows, inside, part, low_step, 0, RANK, BLOCK_R)
    y = _outputs(base, rows, inside, columns, base_step)
    on = tl.load(active + rows, mask=inside, other=0)
    y = _updated(y, on, inputs, weights, low, b, rows, inside, columns, part, low_step, kind,
                 RANK, BLOCK_R)  # fmt: skip
    tl.store(out + rows[:, None] * out_step + columns[None, :], y.to(kind), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_rows"])
def _expand_gated_kernel(
    out, base, low, b, active, num_rows, out_step, base_step, low_step, width,
    RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr, launch_pdl: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate) up, for BLOCK_N columns of both; it is rounded after each operation."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    others = columns + width
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    inside = rows < num_rows
    kind = out.dtype.element_ty
    gate_weights = _weights(b, columns, 0, RANK, BLOCK_R)
    up_weights = _weights(b, others, 0, RANK, BLOCK_R)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    gate_inputs = _inputs(low, rows, inside, 0, low_step, 0, RANK, BLOCK_R)
    up_inputs = _inputs(low, rows, inside, 1, low_step, 0, RANK, BLOCK_R)
    gate = _outputs(base, rows, inside, columns, base_step)
    up = _outputs(base, rows, inside, others, base_step)
    on = tl.load(active + rows, mask=inside, other=0)
    gate = _updated(gate, on, gate_inputs, gate_weights, low, b, rows, inside, columns, 0, low_step,
                    kind, RANK, BLOCK_R)  # fmt: skip
    up = _updated(up, on, up_inputs, up_weights, low, b, rows, inside, others, 1, low_step, kind,
                  RANK, BLOCK_R)  # fmt: skip
    gate = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out + rows[:, None] * out_step + columns[None, :], (gate * up).to(kind),
             mask=inside[:, None])  # fmt: skip


@triton.jit
def _copy_kernel(table, blocks, scale, SOURCE: tl.constexpr, TARGET: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Copy one block of one tensor: target[row * step + column] = source * (scale or 1)."""
    pid = tl.program_id(0)
    entry = table + 6 * tl.load(blocks + 2 * pid)
    source = tl.load(entry).to(tl.pointer_type(SOURCE))
    target = tl.load(entry + 1).to(tl.pointer_type(TARGET))
    size = tl.load(entry + 2).to(tl.int32)
    width = tl.load(entry + 3).to(tl.int32)
    step = tl.load(entry + 4).to(tl.int32)
    factor = tl.where(tl.load(entry + 5) != 0, scale, 1.0)
    at = tl.load(blocks + 2 * pid + 1).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = tl.load(source + at, mask=inside).to(tl.float32) * factor
    to = at
    if step != width:
        to = at // width * step + at % width
    tl.store(target + to, values.to(TARGET), mask=inside)


def column_block(widths: Sequence[int]) -> int:
    """Find the most columns, a power of two up to 128, that divide every part; or ValueError.

    A program of `expand` then stays inside one part.
    """
    block = 128
    while any(width % block for width in widths):
        block //= 2
    if block < 16 or len(widths) > MOST_PARTS:
        raise ValueError(
            f"a fused layer must have at most {MOST_PARTS} parts with multiples of 16 outputs, "
            f"got {', '.join(map(str, widths))}"
        )
    return block


def tiling(num_rows: int, widths: Sequence[int], *, early: bool) -> ExpandTiling:
    """Cut `expand` into small tiles where rows are few, so that all multiprocessors have one."""
    most = column_block(widths)
    if num_rows <= 256:
        return ExpandTiling(16 if num_rows <= 64 else 32, min(most, 64), 4, early)
    return ExpandTiling(64, most, 8, early)


def expand(
    out: Tensor, base: Tensor, low: Tensor, b: Tensor, active: Tensor, widths: Sequence[int],
    tile: ExpandTiling,
) -> None:  # fmt: skip
    """Set out = base + active * (low B^T), each part of the columns with its own part of `low`.

    The last dimensions are dense. The update is rounded to the dtype of `out` before it is added.

    Args:
        out: The result (M, N); it may be `base` itself.
        base: The layer's own output (M, N).
        low: A x (M, parts * R).
        b: B of all parts (N, R), dense.
        active: Whole numbers (>= M), 0 for rows without the adapter.
        widths: Columns of each part.
        tile: The cut into programs.
    """
    num_columns = base.shape[1]
    ends = [sum(widths[: n + 1]) for n in range(len(widths))] + [num_columns] * MOST_PARTS
    _launch(_expand_kernel, out, base, low, b, active, tuple(ends[:2]), tile)


def expand_gated(
    out: Tensor, base: Tensor, low: Tensor, b: Tensor, active: Tensor, tile: ExpandTiling
) -> None:
    """Set out = silu(gate) * up of the two parts that `expand` would give.

    silu and the product are rounded to the dtype of `out`, as separate operations would be.

    Args:
        out: The result (M, N / 2).
        base, low, b, active: The tensors of `expand`.
        tile: The cut into programs, for parts as wide as `out`.
    """
    _launch(_expand_gated_kernel, out, base, low, b, active, (out.shape[1],), tile)


def _launch(
    kernel: Any, out: Tensor, base: Tensor, low: Tensor, b: Tensor, active: Tensor,
    sizes: tuple[int, ...], tile: ExpandTiling,
) -> None:  # fmt: skip
    num_rows, num_columns = out.shape
    rank = b.shape[1]
    # tl.dot takes no fewer than 16.
    block_r = min(64, max(16, triton.next_power_of_2(rank)))
    kernel[(num_columns // tile.block_n, triton.cdiv(num_rows, tile.block_m))](
        out, base, low, b, active, num_rows, out.stride(0), base.stride(0), low.stride(0), *sizes,
        RANK=rank, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_R=block_r,
        EARLY=tile.early, launch_pdl=tile.early, num_warps=tile.num_warps,
    )  # fmt: skip


_KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class CopyTable:
    """A table copies many small tensors to strided targets at once: target = source * (scale or 1).

    It reads the sources where they lay at first; `reads` says whether they still do.
    """

    def __init__(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], scaled: Sequence[bool]
    ) -> None:
        """Take matrices on one device; sources are dense and of one dtype, targets of one dtype.

        Raises ValueError otherwise.
        """
        if not fits(sources, targets):
            raise ValueError("the sources must be dense, on the targets' device, of one dtype each")
        self._sources = list(sources)
        self._layouts = _layouts(sources)
        self._addresses = list(map(Tensor.data_ptr, sources))
        self._kinds = _KINDS[sources[0].dtype], _KINDS[targets[0].dtype]
        rows, blocks = [], []
        for n, (source, target, scale) in enumerate(zip(sources, targets, scaled, strict=True)):
            rows.append(
                (source.data_ptr(), target.data_ptr(), source.numel(), source.shape[1],
                 target.stride(0), int(scale))
            )  # fmt: skip
            blocks += [(n, block) for block in range(triton.cdiv(source.numel(), _COPY_BLOCK))]
        device = sources[0].device
        self._table = torch.tensor(rows, dtype=torch.int64).to(device)
        self._blocks = torch.tensor(blocks, dtype=torch.int32).to(device)

    def reads(self, sources: Sequence[Tensor]) -> bool:
        """Tell whether `copy` reads what `sources` hold now: the same memory in the same layout."""
        if self._addresses != list(map(Tensor.data_ptr, sources)):
            return False
        # The same objects: cheaper to see than dtype, shape and strides of each.
        known = len(sources) == len(self._sources) and all(map(is_, sources, self._sources))
        return (known and all(map(Tensor.is_contiguous, sources))) or (
            self._layouts == _layouts(sources)
        )

    def copy(self, scale: float) -> None:
        """Copy everything; sources marked as scaled are multiplied in float32 before rounding."""
        source, target = self._kinds
        _copy_kernel[(len(self._blocks),)](
            self._table, self._blocks, scale, SOURCE=source, TARGET=target, BLOCK=_COPY_BLOCK,
            num_warps=8,
        )  # fmt: skip


def _layouts(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(t.dtype, t.device, t.shape, t.stride()) for t in tensors]


def fits(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Tell whether `CopyTable` takes these."""
    kinds = ({t.dtype for t in sources}, {t.dtype for t in targets})
    return (
        len({t.device for t in (*sources, *targets)}) == 1
        and all(len(kind) == 1 and kind <= _KINDS.keys() for kind in kinds)
        and all(t.is_contiguous() for t in sources)
        and all(t.stride(1) == 1 for t in targets)
        and all(s.shape == t.shape for s, t in zip(sources, targets, strict=True))
    )
