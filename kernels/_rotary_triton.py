# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The Triton kernels rotate for `rlkit.kernels.rotary`."""

from __future__ import annotations

from rlkit.runtime.triton import tl, triton


@triton.jit
def _turned(first, second, cos_ptr, sin_ptr, table, real, SIGN: tl.constexpr, HALF: tl.constexpr):
    """Turn halves of heads by the angles at `table`; SIGN -1 is the gradient's direction."""
    cos1 = tl.load(cos_ptr + table, mask=real, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + table + HALF, mask=real, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + table, mask=real, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + table + HALF, mask=real, other=0.0).to(tl.float32)
    if SIGN > 0:
        return first * cos1 - second * sin1, second * cos2 + first * sin2
    return first * cos1 + second * sin2, second * cos2 - first * sin1


@triton.jit
def rotate(
    x_ptr, cos_ptr, sin_ptr, y_ptr, num_heads, row_stride,
    SIGN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Rotate the heads of one token; SIGN -1 is the gradient's direction."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    heads = tl.arange(0, HEADS)[:, None]
    real = columns < HALF
    inside = (heads < num_heads) & real
    offsets = heads * 2 * HALF + columns
    x = x_ptr + token * row_stride + offsets
    first = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    table = token * 2 * HALF + columns
    y1, y2 = _turned(first, second, cos_ptr, sin_ptr, table, real, SIGN, HALF)
    y = y_ptr + token * num_heads * 2 * HALF + offsets
    tl.store(y, y1.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y + HALF, y2.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def split_heads(
    x_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr,
    SIGN: tl.constexpr, ROTATED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Move the heads of one token between x and q, k, v; SIGN -1 is the gradient's direction."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    heads = tl.arange(0, HEADS)[:, None]
    real = columns < HALF
    is_q = real & (heads < QUERIES)
    is_k = real & (heads >= QUERIES) & (heads < QUERIES + KEYS)
    is_v = real & (heads >= QUERIES + KEYS) & (heads < QUERIES + 2 * KEYS)
    offsets = heads * 2 * HALF + columns
    x = x_ptr + token * (QUERIES + 2 * KEYS) * 2 * HALF + offsets
    q = q_ptr + token * QUERIES * 2 * HALF + offsets
    k = k_ptr + token * KEYS * 2 * HALF + offsets - QUERIES * 2 * HALF
    v = v_ptr + token * KEYS * 2 * HALF + offsets - (QUERIES + KEYS) * 2 * HALF
    inside = is_q | is_k | is_v
    if SIGN > 0:
        first = tl.load(x, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    else:
        first = _one_of(q, k, v, is_q, is_k, is_v)
        second = _one_of(q + HALF, k + HALF, v + HALF, is_q, is_k, is_v)
    y1, y2 = first, second
    if ROTATED:
        table = token * 2 * HALF + columns
        y1, y2 = _turned(first, second, cos_ptr, sin_ptr, table, real, SIGN, HALF)
        y1, y2 = tl.where(is_v, first, y1), tl.where(is_v, second, y2)
    y1, y2 = y1.to(x_ptr.dtype.element_ty), y2.to(x_ptr.dtype.element_ty)
    if SIGN > 0:
        tl.store(q, y1, mask=is_q)
        tl.store(q + HALF, y2, mask=is_q)
        tl.store(k, y1, mask=is_k)
        tl.store(k + HALF, y2, mask=is_k)
        tl.store(v, y1, mask=is_v)
        tl.store(v + HALF, y2, mask=is_v)
    else:
        tl.store(x, y1, mask=inside)
        tl.store(x + HALF, y2, mask=inside)


@triton.jit
def _one_of(q, k, v, is_q, is_k, is_v):
    """Add the arguments; each is 0 where the others are not."""
    found = tl.load(q, mask=is_q, other=0.0).to(tl.float32)
    found += tl.load(k, mask=is_k, other=0.0).to(tl.float32)
    return found + tl.load(v, mask=is_v, other=0.0).to(tl.float32)
