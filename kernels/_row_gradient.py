"""Make an autograd edge for row-wise functions whose gradient direction is already known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_row_gradient(hidden: Tensor, values: Tensor, factor: Tensor, direction: Tensor) -> Tensor:
    """Return `values` (N,) with d values_i / d hidden_i = factor_i direction_i (N, D) and no more.

    The backward pass multiplies `direction` in place and returns it: it runs once, and what it
    needs is never larger than one copy of `hidden`. The caller must let go of `direction`.

    Args:
        hidden: Hidden states (N, D), which get the gradient.
        values: Values (N,), already computed.
        factor: Factors (N,).
        direction: Directions (N, D) in hidden's dtype; overwritten in the backward pass.

    Returns:
        The values, attached to `hidden`.
    """
    function: Any = _RowGradient
    attached: Tensor = function.apply(hidden, values, factor, direction)
    return attached


class _RowGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, values: Tensor, factor: Tensor, direction: Tensor
    ) -> Tensor:
        # Not save_for_backward: autograd forbids changing saved tensors.
        ctx.factor, ctx.direction = factor, direction
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.direction is None:
            raise RuntimeError(
                "logps and KL of a frozen head can be differentiated once: the backward pass "
                "reuses the memory of the gradient direction; sum the losses, then call backward"
            )
        direction, ctx.direction = ctx.direction, None
        return direction.mul_((grad * ctx.factor)[:, None]), None, None, None
