"""Rotate queries and keys, and lay them out as attention wants them, in one pass over memory.

Like `rlkit.kernels.layers`, it serves models in 16 bits on a GPU, and the meta device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkit.kernels.layers import power_of_two

Tables = tuple[Tensor, Tensor]
"""cos and sin (T, d) of rotary embeddings."""


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (T, H, d) by the (T, d) tables of positions: x cos + rotate_half(x) sin.

    rotate_half((a, b)) = (-b, a). Differentiable in `x`; the result is contiguous. Su et al. 2021,
    arXiv:2104.09864, eq. 34.
    """
    out: Tensor = _Rotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def split_heads(
    x: Tensor, tables: Tables | None, *, num_kv: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split (T, (H + 2 num_kv) d) into queries (T, H, d), keys and values; d = `width`.

    Keys and values are (T, num_kv, d). Queries and keys are rotated by `tables` as by `rotary`. The
    function is differentiable in `x`, and all three results are contiguous.

    Args:
        x: Projections of all heads (T, (H + 2 num_kv) d).
        tables: cos and sin (T, d); None leaves the heads as they are.
        num_kv: Heads of keys, and of values.
        width: Numbers of a head.

    Returns:
        Queries, keys and values.
    """
    cos, sin = (None, None) if tables is None else tables
    q, k, v = _Split.apply(x, cos, sin, num_kv, width)  # type: ignore[no-untyped-call]
    return q, k, v


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, sign=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _rotate(dy, *ctx.saved_tensors, sign=-1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, sign: int) -> Tensor:
    num_tokens, num_heads, width = x.shape
    if x.stride()[1:] != (width, 1):
        x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.is_meta:
        from rlkit.kernels import _rotary_triton as kernels

        half = width // 2
        kernels.rotate[(num_tokens,)](
            x, cos, sin, y, num_heads, x.stride(0),
            SIGN=sign, HALF=half, BLOCK=power_of_two(half), HEADS=power_of_two(num_heads),
        )  # fmt: skip
    return y


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor | None, sin: Tensor | None, num_kv: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        num_queries = x.shape[1] // width - 2 * num_kv
        q, k, v = (x.new_empty(len(x), n, width) for n in (num_queries, num_kv, num_kv))
        ctx.tables = cos, sin  # constants: no gradient, and the same for all layers
        _split(x, (q, k, v), ctx.tables, sign=1)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = tuple(grad.contiguous() for grad in grads)
        num_tokens, _, width = parts[0].shape
        dx = parts[0].new_empty(num_tokens, sum(part.shape[1] for part in parts) * width)
        _split(dx, parts, ctx.tables, sign=-1)
        return dx, None, None, None, None


def _split(
    x: Tensor, parts: tuple[Tensor, ...], tables: tuple[Tensor | None, ...], *, sign: int
) -> None:
    """Copy `x` into `parts`; with sign -1, `parts`, which are gradients, into `x`."""
    if x.is_meta:
        return
    from rlkit.kernels import _rotary_triton as kernels

    q, k, v = parts
    half, num_heads = q.shape[2] // 2, q.shape[1] + 2 * k.shape[1]
    cos, sin = (x if table is None else table for table in tables)
    block, heads = power_of_two(half), power_of_two(num_heads)
    kernels.split_heads[(len(x),)](
        x, cos, sin, q, k, v, SIGN=sign, ROTATED=tables[0] is not None,
        QUERIES=q.shape[1], KEYS=k.shape[1], HALF=half, BLOCK=block, HEADS=heads,
        num_warps=8 if heads * block > 4096 else 4,
    )  # fmt: skip
