"""`kl_exact` computes the exact KL divergence between two next-word distributions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkit.kernels._kl_torch import KLChunk, chunk, fits, fused_chunk
from rlkit.kernels._logps_torch import add_grad_weight, chunks
from rlkit.kernels._row_gradient import with_row_gradient
from rlkit.kernels.lm_head import LogitMap, check_head, matmul, working
from rlkit.kernels.workspace import WORKSPACE_BYTES


class Direction(StrEnum):
    """The distribution that averages the log ratio; `rlkit.types.KLDirection` fits too."""

    reverse = "reverse"
    """KL(policy || ref)."""
    forward = "forward"
    """KL(ref || policy)."""


def kl_exact(
    hidden: Float[Tensor, "N D"],
    ref_hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    *,
    direction: Direction | str,
    top_k: int | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    bias: Float[Tensor, " V"] | None = None,
    ref_weight: Float[Tensor, "V D"] | None = None,
    ref_bias: Float[Tensor, " V"] | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Float[Tensor, " N"]:
    """Return the KL per row, in nats, >= 0, over all V words, from the two models' hidden states.

    Both distributions are softmax(softcap(logit_scale (h W^T + bias)) / temperature); the reference
    has a head of its own where `ref_weight` and `ref_bias` are given. `top_k` first coarsens both
    to the reference's `top_k` likeliest words and one bucket of all others. By the data-processing
    inequality that is a lower bound of the full divergence. `top_k` >= V is the full divergence.

    Differentiable in `hidden`, once with a frozen head: the gradient is found in the forward pass
    (three matmuls of 2 N V D operations in all). `weight` and `bias` that require gradients get
    them; the backward pass then computes the logits again. With d_v = log(p_v / q_v), and sums over
    v:

        reverse  sum p d       gradient in the logits  p_v (d_v - KL)
        forward  sum -q d      gradient in the logits  p_v - q_v

    Float32 (float64 for float64 inputs) results; each row is a sum of terms >= 0, so nearly equal
    distributions lose no digits to cancellation. Source: the definition; the gradients are derived
    in docs/kernels.md.

    Args:
        hidden: Last hidden states of the policy.
        ref_hidden: Those of the reference.
        weight: The head.
        direction: Which distribution the log ratio is averaged under.
        top_k: Words kept apart, >= 1; None keeps all.
        temperature: Divides the logits; > 0.
        logit_scale: Multiplies the products; not 0.
        softcap: Bound of the logits before the temperature; None means no bound.
        bias: Added to the products.
        ref_weight: The reference's head; None means the policy's, detached.
        ref_bias: The reference's bias, likewise.
        workspace_bytes: Bound on temporary memory.

    Returns:
        KL per row.

    Raises:
        ValueError: Where a shape, dtype, device or range does not fit; it names the argument.
    """
    logit_map = LogitMap(temperature, logit_scale, softcap, bias)
    check_head(hidden, weight, logit_map)
    _check(hidden, ref_hidden, top_k, workspace_bytes)
    ref_weight = _ref_part("weight", ref_weight, weight)
    ref_bias = None if bias is None else _ref_part("bias", ref_bias, bias)
    call = _KLCall(
        ref_hidden.detach(), ref_weight, ref_bias, logit_map, workspace_bytes,
        reverse=Direction(direction) == Direction.reverse, top_k=top_k,
    )  # fmt: skip
    if torch.is_grad_enabled() and (
        weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        function: Any = _TwoPassKL
        learnt: Tensor = function.apply(hidden, weight, bias, call)
        return learnt
    learns = torch.is_grad_enabled() and hidden.requires_grad
    values = _empty_values(hidden)
    factor = torch.empty_like(values)
    gradient = torch.empty_like(hidden) if learns else None
    with torch.no_grad(), _on(hidden):
        head = working(weight)
        for rows, found in call.chunks(hidden, head, gradient=learns):
            values[rows] = found.values
            if gradient is not None and found.dz is not None:
                product = matmul(found.dz.to(head.dtype), head)
                scale = found.factor * logit_map.gain
                if hidden.dtype == torch.float16:
                    sizes = _powers_of_two(product)
                    product.div_(sizes[:, None])
                    scale = scale * sizes
                gradient[rows], factor[rows] = product, scale
    if gradient is None:
        return values
    return with_row_gradient(hidden, values, factor, gradient)


def _powers_of_two(product: Tensor) -> Tensor:
    """Return the power of two above each row's largest number (R,): float16 holds what is left."""
    most = product.abs().amax(1)
    return torch.ldexp(torch.ones_like(most), torch.frexp(most).exponent)


class _KLCall(NamedTuple):
    """This record holds the reference and the options of a call."""

    ref_hidden: Tensor
    ref_weight: Tensor
    ref_bias: Tensor | None
    logit_map: LogitMap
    workspace_bytes: int
    reverse: bool
    top_k: int | None

    def chunks(
        self, hidden: Tensor, head: Tensor, *, gradient: bool
    ) -> Iterator[tuple[slice, KLChunk]]:
        """Return the divergence of all rows, as many at a time as the workspace holds."""
        same = self.ref_weight.data_ptr() == head.data_ptr()
        ref_head = head if same else working(self.ref_weight)
        fused = fits(hidden, self.top_k)
        row_bytes = len(head) * (10 if fused else 6 * max(4, head.itemsize))
        for rows in chunks(len(hidden), row_bytes, self.workspace_bytes):
            ref_product = matmul(working(self.ref_hidden[rows]), ref_head.T)
            if self.ref_bias is not None and self.logit_map.bias is not None:
                ref_product.add_(self.ref_bias - self.logit_map.bias)
            product = matmul(working(hidden[rows]), head.T)
            if fused:
                found = fused_chunk(
                    product, ref_product, self.logit_map, dtype=hidden.dtype,
                    reverse=self.reverse, gradient=gradient,
                )  # fmt: skip
            else:
                found = chunk(
                    product, ref_product, self.logit_map, reverse=self.reverse,
                    top_k=self.top_k, gradient=gradient,
                )  # fmt: skip
            yield rows, found


class _TwoPassKL(torch.autograd.Function):
    """This serves a head that trains: it keeps the inputs and computes the logits twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _KLCall
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.call = call
        values = _empty_values(hidden)
        with _on(hidden):
            for rows, found in call.chunks(hidden, working(weight), gradient=False):
                values[rows] = found.values
        return values

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias = ctx.saved_tensors
        call: _KLCall = ctx.call
        head = working(weight)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        of_bias = weight.new_zeros(len(weight), dtype=grad.dtype)
        with _on(hidden):
            for rows, found in call.chunks(hidden, head, gradient=True):
                assert found.dz is not None
                dz = found.dz.to(head.dtype)
                scale = (grad[rows] * found.factor * call.logit_map.gain)[:, None]
                if of_hidden is not None:
                    of_hidden[rows] = matmul(dz, head).mul_(scale)
                if bias is not None:
                    of_bias.addmv_(dz.to(grad.dtype).T, scale.squeeze(1))
                if of_weight is not None:
                    # Relative to the largest: a 16-bit product with a small loss would vanish.
                    peak = scale.abs().amax().clamp_min_(1e-30)
                    h = (working(hidden[rows]) * (scale / peak)).to(head.dtype)
                    add_grad_weight(of_weight, dz, h, peak)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if bias is None else of_bias.to(bias.dtype),
            None,
        )


def _empty_values(hidden: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.new_empty(hidden.shape[0], dtype=wide)


def _ref_part(name: str, ref: Tensor | None, own: Tensor) -> Tensor:
    """Return the reference's part of the head; the policy's where it has none of its own."""
    if ref is None:
        return own.detach()
    if (ref.shape, ref.dtype, ref.device) != (own.shape, own.dtype, own.device):
        raise ValueError(
            f"ref_{name} must have {name}'s shape, dtype and device ({tuple(own.shape)}, "
            f"{own.dtype}, {own.device}), got {tuple(ref.shape)}, {ref.dtype}, {ref.device}"
        )
    return ref.detach()


def _on(hidden: Tensor) -> AbstractContextManager[None]:
    """Make hidden's device the current one, on which Triton launches."""
    device: Any = torch.cuda.device_of
    context: AbstractContextManager[None] = device(hidden)
    return context


def _check(hidden: Tensor, ref_hidden: Tensor, top_k: int | None, workspace_bytes: int) -> None:
    if ref_hidden.shape != hidden.shape:
        raise ValueError(
            f"ref_hidden must have hidden's shape {tuple(hidden.shape)}, "
            f"got {tuple(ref_hidden.shape)}"
        )
    if ref_hidden.dtype != hidden.dtype or ref_hidden.device != hidden.device:
        raise ValueError(
            f"ref_hidden must have hidden's dtype and device ({hidden.dtype}, {hidden.device}), "
            f"got {ref_hidden.dtype}, {ref_hidden.device}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be None or >= 1, got {top_k}")
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes must be > 0, got {workspace_bytes}")
