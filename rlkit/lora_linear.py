"""The arithmetic of an adapted layer, with fewer passes over memory than autograd would make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rlkit.models.four_bit import dense, linear


def updated_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, scaled_b: Tensor
) -> Tensor:
    """x W^T + bias + (x A^T) (s B)^T, differentiable in `x`, A and s B.

    W, in 16 or 32 bits or bitsandbytes' 4, and bias are frozen. The update is added to the product
    in the same matmul: rounded once, and with B = 0 the result is bitwise that without it.
    """
    out: Tensor = _UpdatedLinear.apply(x, weight, bias, a, scaled_b)  # type: ignore[no-untyped-call]
    return out


def unread_linear(x: Tensor, weight: Tensor, a: Tensor, scaled_b: Tensor) -> Tensor:
    """`updated_linear` for its gradients alone: the values of the result are undefined."""
    out: Tensor = _UnreadLinear.apply(x, weight, None, a, scaled_b)  # type: ignore[no-untyped-call]
    return out


def compute_copies(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], *, scale: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Copies in `dtype` of all A and then of all s B; differentiable, in a handful of launches.

    s B is rounded once, to `dtype`, and its gradient once, to that of B.
    """
    copies: tuple[Tensor, ...] = _Copies.apply(len(firsts), scale, dtype, *firsts, *seconds)  # type: ignore[no-untyped-call]
    return copies


class _UpdatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, scaled_b: Tensor
    ) -> Tensor:
        out = linear(x, weight, bias)
        inner = F.linear(x, a)
        out.view(-1, out.shape[-1]).addmm_(inner.flatten(0, -2), scaled_b.t())
        _keep(ctx, x, weight, a, scaled_b, inner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, scaled_b, inner = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        inner_grad = rows @ scaled_b
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = (rows @ dense(ctx.weight).to(rows.dtype)).addmm_(inner_grad, a).view_as(x)
        if ctx.needs_input_grad[3]:
            da = inner_grad.t() @ inputs
        if ctx.needs_input_grad[4]:
            db = rows.t() @ inner.flatten(0, -2)
        return dx, None, None, da, db


class _UnreadLinear(_UpdatedLinear):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, scaled_b: Tensor
    ) -> Tensor:
        _keep(ctx, x, weight, a, scaled_b, F.linear(x, a))
        return x.new_empty((*x.shape[:-1], len(scaled_b)))


def _keep(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, scaled_b: Tensor, inner: Tensor) -> None:
    """The weight, which is frozen, as the object that it is: autograd would keep its codes only."""
    ctx.weight = weight
    ctx.save_for_backward(x, a, scaled_b, inner)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, num_firsts: int, scale: float, dtype: torch.dtype, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.num_firsts, ctx.scale = num_firsts, scale
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return _scaled(num_firsts, scale, tensors, [dtype] * len(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *_scaled(ctx.num_firsts, ctx.scale, grads, ctx.dtypes)


def _scaled(
    num_firsts: int, scale: float, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """Copies in `dtypes`, those after the first ones times `scale`, in the wider of two dtypes."""
    firsts, seconds = tensors[:num_firsts], tensors[num_firsts:]
    narrows = dtypes[0].itemsize < tensors[0].dtype.itemsize
    sources = [*firsts, *(torch._foreach_mul(list(seconds), scale) if narrows else seconds)]
    copies = [torch.empty_like(s, dtype=d) for s, d in zip(sources, dtypes, strict=True)]
    torch._foreach_copy_(copies, sources)
    if not narrows:
        torch._foreach_mul_(copies[num_firsts:], scale)
    return tuple(copies)
