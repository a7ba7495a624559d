"""This module computes adapted layers in fewer passes over memory than autograd would make.

Layers with one input (q, k and v; gate and up) may be computed as one, a group. [A_1; A_2] is
applied at once, and s B is the matrix with the layers' s B_i as blocks on its diagonal. Two zero
blocks of a few columns cost less than a second matmul.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rlkit.models.joined import Frozen, input_gradient, product
from rlkit.runtime.torch_compat import copy_all, scale_all_, scaled_all

Group = Sequence[tuple[Tensor, Tensor]]
"""A (r, in) and B (out, r) of layers with one input."""


def updated_linear(x: Tensor, frozen: Frozen, a: Tensor, scaled_b: Tensor) -> Tensor:
    """Return x W^T + bias + (x A^T) (s B)^T, differentiable in `x`, A and s B.

    The update is added to the product in the same matmul, so the sum is rounded once. With B = 0
    the result is bitwise that without it.

    Args:
        x: (..., in) the input.
        frozen: The weights W of a group of layers with one input, and their biases.
        a: (r, in) the group's A.
        scaled_b: (out, r) the group's s B.

    Returns:
        (..., out) the layers' outputs, side by side.
    """
    out: Tensor = _UpdatedLinear.apply(x, frozen, a, scaled_b)  # type: ignore[no-untyped-call]
    return out


def unread_linear(x: Tensor, frozen: Frozen, a: Tensor, scaled_b: Tensor) -> Tensor:
    """Compute `updated_linear` for its gradients alone: the values of the result are undefined.

    Args:
        x: (..., in) the input.
        frozen: The weights of a group of layers with one input, and their biases.
        a: (r, in) the group's A.
        scaled_b: (out, r) the group's s B.

    Returns:
        (..., out) memory without values, of which the gradients are those of `updated_linear`.
    """
    out: Tensor = _UnreadLinear.apply(x, frozen, a, scaled_b)  # type: ignore[no-untyped-call]
    return out


def compute_copies(
    groups: Sequence[Group], *, scale: float, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return A and s B of each group in `dtype`; differentiable, in launches that all groups share.

    s B is rounded once, to `dtype`, and its gradient once, to that of B.
    """
    alike: dict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        alike[tuple(factor.shape for pair in group for factor in pair)].append(i)
    order = [[groups[i] for i in members] for members in alike.values()]
    leaves = [factor for kind in order for group in kind for pair in group for factor in pair]
    shapes = [(len(kind), len(kind[0])) for kind in order]
    stacks: tuple[Tensor, ...] = _Copies.apply(shapes, scale, dtype, *leaves)  # type: ignore[no-untyped-call]
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    for kind, members, a, b in zip(order, alike.values(), stacks[::2], stacks[1::2], strict=True):
        blocks = _on_diagonal(b, [len(second) for _, second in kind[0]])
        pairs = zip(a.unbind(), blocks.unbind(), strict=True)
        copies.update(zip(members, pairs, strict=True))
    return [copies[i] for i in range(len(groups))]


def _on_diagonal(b: Tensor, widths: Sequence[int]) -> Tensor:
    """Return (groups, out, layers r) from (groups, out, r).

    The rows are the layers' one after another; each layer's go to columns of its own.
    """
    if len(widths) == 1:
        return b
    own = b.new_zeros(sum(widths), len(widths), 1)
    for i, rows in enumerate(torch.split(own, list(widths))):
        rows[:, i] = 1.0
    return (b.unsqueeze(2) * own).flatten(2)


class _UpdatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, a: Tensor, scaled_b: Tensor) -> Tensor:
        out = product(x, frozen)
        inner = F.linear(x, a)
        out.view(-1, out.shape[-1]).addmm_(inner.flatten(0, -2), scaled_b.t())
        _keep(ctx, x, frozen, a, scaled_b, inner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, scaled_b, inner = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        inner_grad = rows @ scaled_b
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(rows, ctx.frozen).addmm_(inner_grad, a).view_as(x)
        if ctx.needs_input_grad[2]:
            da = inner_grad.t() @ inputs
        if ctx.needs_input_grad[3]:
            db = rows.t() @ inner.flatten(0, -2)
        return dx, None, da, db


class _UnreadLinear(_UpdatedLinear):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, a: Tensor, scaled_b: Tensor) -> Tensor:
        _keep(ctx, x, frozen, a, scaled_b, F.linear(x, a))
        return x.new_empty((*x.shape[:-1], len(scaled_b)))


def _keep(ctx: Any, x: Tensor, frozen: Frozen, a: Tensor, scaled_b: Tensor, inner: Tensor) -> None:
    """Keep the frozen weights as the objects they are: autograd would keep codes only."""
    ctx.frozen = frozen
    ctx.save_for_backward(x, a, scaled_b, inner)


class _Copies(torch.autograd.Function):
    """For groups of equal shapes, this has stacks of [A_1; A_2; ...] and of [s B_1; s B_2; ...]."""

    @staticmethod
    def forward(
        ctx: Any,
        shapes: Sequence[tuple[int, int]],
        scale: float,
        dtype: torch.dtype,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.scale = shapes, scale
        ctx.leaves = [(leaf.shape, leaf.dtype) for leaf in leaves]
        stacks, start = [], 0
        for num_groups, num_layers in shapes:
            one = leaves[start : start + 2 * num_layers]
            for factor in (one[::2], one[1::2]):
                rows = sum(map(len, factor))
                stacks.append(
                    factor[0].new_empty(num_groups, rows, factor[0].shape[1], dtype=dtype)
                )
            start += 2 * num_groups * num_layers
        firsts, seconds = _places(stacks, shapes, [leaf.shape for leaf in leaves])
        copy_all(firsts, leaves[::2])
        _scale_into(seconds, leaves[1::2], scale)
        return tuple(stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stacks = [grad.contiguous() for grad in grads]
        firsts, seconds = _places(stacks, ctx.shapes, [shape for shape, _ in ctx.leaves])
        found = [stacks[0].new_empty(shape, dtype=dtype) for shape, dtype in ctx.leaves]
        copy_all(found[::2], firsts)
        _scale_into(found[1::2], seconds, ctx.scale)
        return None, None, None, *found


def _places(
    stacks: Sequence[Tensor], shapes: Sequence[tuple[int, int]], leaves: Sequence[torch.Size]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the places of each A and each B in `stacks`, contiguous."""
    firsts: list[Tensor] = []
    seconds: list[Tensor] = []
    start = 0
    for (num_groups, num_layers), a, b in zip(shapes, stacks[::2], stacks[1::2], strict=True):
        one = leaves[start : start + 2 * num_layers]
        for places, stack, sizes in ((firsts, a, one[::2]), (seconds, b, one[1::2])):
            places += torch.split(stack.flatten(0, 1), [s[0] for s in sizes] * num_groups)
        start += 2 * num_groups * num_layers
    return firsts, seconds


def _scale_into(targets: Sequence[Tensor], sources: Sequence[Tensor], scale: float) -> None:
    """Return scale * sources, multiplied in the wider of two dtypes."""
    narrows = targets[0].dtype.itemsize < sources[0].dtype.itemsize
    scaled = scaled_all(sources, scale) if narrows else sources
    copy_all(targets, scaled)
    if not narrows:
        scale_all_(targets, scale)
