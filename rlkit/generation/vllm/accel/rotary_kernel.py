# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""One Triton kernel after q, k and v: the adapter's update, the rotation, and the cache's entry."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlkit.generation.vllm.accel.lora_kernels import (
    ExpandTiling,
    _inputs,
    _outputs,
    _updated,
    _weights,
)
from rlkit.runtime.triton import tl, triton


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def _rotary_kernel(
    out, keys, values, base, low, b, active, positions, table, slots, num_rows, num_slots,
    out_step, base_step, low_step, table_step, block_step, token_step, head_step, block_size,
    num_heads, num_kv_heads,
    HALF: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr, launch_pdl: tl.constexpr,
):  # fmt: skip
    """Do one head of BLOCK_M rows: of q to `out`, of k and v to the slots of their tokens."""
    head = tl.program_id(0)
    part = (head >= num_heads).to(tl.int32) + (head >= num_heads + num_kv_heads).to(tl.int32)
    within = tl.arange(0, HALF)
    columns = head * (2 * HALF) + within
    others = columns + HALF
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    inside = rows < num_rows
    kind = out.dtype.element_ty
    # What the layer's product does not write is asked for before that product has ended.
    weights = _weights(b, columns, 0, RANK, BLOCK_R)
    other_weights = _weights(b, others, 0, RANK, BLOCK_R)
    position = tl.load(positions + rows, mask=inside, other=0)
    angles = table + position[:, None] * table_step + within[None, :]
    cosines = tl.load(angles, mask=inside[:, None], other=0.0).to(tl.float32)
    sines = tl.load(angles + HALF, mask=inside[:, None], other=0.0).to(tl.float32)
    slot = tl.load(slots + rows, mask=rows < num_slots, other=-1).to(tl.int64)
    on = tl.load(active + rows, mask=inside, other=0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    inputs = _inputs(low, rows, inside, part, low_step, 0, RANK, BLOCK_R)
    x = _outputs(base, rows, inside, columns, base_step)
    y = _outputs(base, rows, inside, others, base_step)
    x = _updated(x, on, inputs, weights, low, b, rows, inside, columns, part, low_step, kind,
                 RANK, BLOCK_R)  # fmt: skip
    y = _updated(y, on, inputs, other_weights, low, b, rows, inside, others, part, low_step, kind,
                 RANK, BLOCK_R)  # fmt: skip
    # Rotated in float32 and rounded once, as vLLM's own kernel does it; values stay.
    first = tl.where(part < 2, x * cosines - y * sines, x).to(kind)
    second = tl.where(part < 2, y * cosines + x * sines, y).to(kind)
    if part == 0:
        to = out + rows[:, None] * out_step + columns[None, :]
        tl.store(to, first, mask=inside[:, None])
        tl.store(to + HALF, second, mask=inside[:, None])
    else:
        kv_head = head - num_heads - tl.where(part == 2, num_kv_heads, 0)
        at = slot // block_size * block_step + slot % block_size * token_step + kv_head * head_step
        to = tl.where(part == 1, keys, values) + at[:, None] + within[None, :]
        kept = inside & (slot >= 0)  # a row without a slot is padding
        tl.store(to, first, mask=kept[:, None])
        tl.store(to + HALF, second, mask=kept[:, None])


def expand_rotate_store(
    out: Tensor, cache: tuple[Tensor, Tensor], base: Tensor, low: Tensor, b: Tensor,
    active: Tensor, positions: Tensor, table: Tensor, slots: Tensor, heads: Sequence[int],
    tile: ExpandTiling,
) -> None:  # fmt: skip
    """Rotate q, k of base + active * (low B^T), q into `out`; put k and v into the cache.

    Results are rounded to the dtype of `out` wherever separate operations would round.

    Args:
        out: The rotated queries (M, H d). The last dimension of every tensor is dense.
        cache: Keys and values (blocks, block size, H', d), with equal strides.
        base: Queries, keys and values of the layer (M, (H + 2 H') d).
        low: A x (M, 3 R).
        b: B of all parts ((H + 2 H') d, R), dense.
        active: Whole numbers (>= M), 0 for rows without the adapter.
        positions: Positions of the rows (>= M).
        table: Cosines, then sines, of each position (positions, d).
        slots: Place of each row's token in the cache (<= M), block * block size + offset; -1 and
            rows beyond have none.
        heads: H and H'.
        tile: The cut into programs; its columns do not matter.
    """
    keys, values = cache
    num_heads, num_kv_heads = heads
    rank, width = b.shape[1], keys.shape[-1]
    _rotary_kernel[(num_heads + 2 * num_kv_heads, triton.cdiv(len(out), tile.block_m))](
        out, keys, values, base, low, b, active, positions, table, slots, len(out), len(slots),
        out.stride(0), base.stride(0), low.stride(0), table.stride(0), keys.stride(0),
        keys.stride(1), keys.stride(2), keys.shape[1], num_heads, num_kv_heads,
        HALF=width // 2, RANK=rank, BLOCK_M=tile.block_m,
        BLOCK_R=min(64, max(16, triton.next_power_of_2(rank))),
        EARLY=tile.early, launch_pdl=tile.early, num_warps=tile.num_warps,
    )  # fmt: skip


def fits(width: int) -> bool:
    """Tell whether heads of `width` are taken: halves must be powers of two, at least 16."""
    half = width // 2
    return width % 2 == 0 and half >= 16 and half & (half - 1) == 0
