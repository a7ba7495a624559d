"""Exact KL divergence between two next-word distributions of one frozen head; `kl_exact`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.kernels._head import WORKSPACE_BYTES, LogitMap, check_head, matmul, working
from rlkit.kernels._logps_torch import chunks
from rlkit.kernels._row_gradient import with_row_gradient


class Direction(StrEnum):
    """Which distribution the log ratio is averaged under; `rlkit.types.KLDirection` fits too."""

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
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Float[Tensor, " N"]:
    """KL per row, in nats, >= 0, over all V words, from the two models' hidden states.

    Both distributions are softmax(softcap(logit_scale (h W^T + bias)) / temperature). With
    `top_k`, both are coarsened first: the reference's `top_k` likeliest words, and one bucket of
    all others; by the data-processing inequality that is a lower bound of the full divergence.
    `top_k` >= V is the full divergence.

    Differentiable in `hidden` alone, once; the gradient is found in the forward pass (three
    matmuls of 2 N V D operations in all). With d_v = log(p_v / q_v), and sums over v:

        reverse  sum p d       gradient in the logits  p_v (d_v - KL)
        forward  sum -q d      gradient in the logits  p_v - q_v

    Float32 (float64 for float64 inputs) results; each row is a sum of terms >= 0, so nearly equal
    distributions lose no digits to cancellation. Temporary memory stays below `workspace_bytes`.

    Raises ValueError, naming the argument, for shapes, dtypes, devices or ranges that do not fit.
    Source: the definition; the gradients are derived in docs/kernels.md.
    """
    logit_map = LogitMap(temperature, logit_scale, softcap, bias)
    check_head(hidden, weight, logit_map)
    _check(hidden, ref_hidden, weight, bias, top_k, workspace_bytes)
    reverse = Direction(direction) == Direction.reverse
    wide = torch.promote_types(hidden.dtype, torch.float32)
    learns = torch.is_grad_enabled() and hidden.requires_grad
    values = hidden.new_empty(hidden.shape[0], dtype=wide)
    factor = torch.empty_like(values)
    gradient = torch.empty_like(hidden) if learns else None
    chunk_gradient = _fused_chunk if _fits(hidden, top_k) else _chunk
    with torch.no_grad(), _on(hidden):
        head = working(weight)
        row_bytes = weight.shape[0] * 6 * max(4, weight.itemsize)
        if chunk_gradient is _fused_chunk:
            row_bytes = weight.shape[0] * 10
        for rows in chunks(hidden.shape[0], row_bytes, workspace_bytes):
            found = chunk_gradient(
                matmul(working(hidden[rows]), head.T),
                matmul(working(ref_hidden[rows]), head.T),
                logit_map,
                reverse=reverse,
                top_k=top_k,
                gradient=learns,
            )
            values[rows] = found.values
            if gradient is not None and found.dz is not None:
                gradient[rows] = matmul(found.dz.to(head.dtype), head)
                factor[rows] = found.factor * logit_map.gain
    if gradient is None:
        return values
    return with_row_gradient(hidden, values, factor, gradient)


class _Chunk(NamedTuple):
    """KL of some rows, and its gradient factor (R,) times dz (R, V) in the products over gain."""

    values: Tensor
    dz: Tensor | None
    factor: Tensor | float


def _fits(hidden: Tensor, top_k: int | None) -> bool:
    """Whether the fused kernel, which has no top k, takes these rows."""
    return hidden.is_cuda and hidden.dtype == torch.bfloat16 and top_k is None


def _on(hidden: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device: makes that hidden's."""
    device: Any = torch.cuda.device_of
    context: AbstractContextManager[None] = device(hidden)
    return context


def _fused_chunk(
    product: Tensor,
    ref_product: Tensor,
    logit_map: LogitMap,
    *,
    reverse: bool,
    top_k: int | None,
    gradient: bool,
) -> _Chunk:
    from rlkit.kernels._kl_triton import kl_rows

    values = product.new_empty(len(product))
    dz = kl_rows(product, ref_product, logit_map, values, reverse=reverse, gradient=gradient)
    return _Chunk(values, dz, 1.0)


def _chunk(
    product: Tensor,
    ref_product: Tensor,
    logit_map: LogitMap,
    *,
    reverse: bool,
    top_k: int | None,
    gradient: bool,
) -> _Chunk:
    z = logit_map.apply_(product)
    ref_logps = logit_map.apply_(ref_product).log_softmax(1)
    slope = logit_map.slope(z) if gradient else None
    logps = z.log_softmax(1)
    ratio = _log_ratio(logps, ref_logps, top_k)
    values = _divergence(logps, ref_logps, ratio, reverse)
    if not gradient:
        return _Chunk(values, None, 1.0)
    dz = _grad_logits(logps, ratio, values[:, None], reverse)
    if slope is not None:
        dz.mul_(slope)
    # A factor per row keeps 16-bit copies of dz in range when p and q almost agree.
    peak = dz.abs().amax(1, keepdim=True).clamp_min_(1e-30)
    return _Chunk(values, dz.div_(peak), peak.squeeze(1))


def _check(
    hidden: Tensor,
    ref_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    top_k: int | None,
    workspace_bytes: int,
) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{name} must not require gradients: kl_exact takes a frozen head")
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


def _log_ratio(logps: Tensor, ref_logps: Tensor, top_k: int | None) -> Tensor:
    """log(p_v / q_v), of the bucket's probabilities for words outside the top k."""
    ratio = logps - ref_logps
    if top_k is None or top_k >= logps.shape[1]:
        return ratio
    kept = ref_logps.topk(top_k, dim=1).indices
    tail = logps.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
    tail -= ref_logps.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
    return tail.expand_as(ratio).scatter(1, kept, ratio.gather(1, kept))


def _divergence(logps: Tensor, ref_logps: Tensor, ratio: Tensor, reverse: bool) -> Tensor:
    """sum_v a (s + exp(-s) - 1), s = log(a / b): equal to sum_v a s, since a and b both add to 1.

    Words of a bucket share s, so that their terms (a exp(-s) or b) add up to the bucket's.
    """
    log_a, log_b, s = (logps, ref_logps, ratio) if reverse else (ref_logps, logps, -ratio)
    a = log_a.exp()
    small = a * (s + torch.expm1(-s))
    large = a * s + (log_b.exp() - a)  # exp(-s) alone may overflow where a vanishes
    return torch.where(s.abs() < 1, small, large).sum(1)


def _grad_logits(logps: Tensor, ratio: Tensor, kl: Tensor, reverse: bool) -> Tensor:
    """d KL / d z."""
    p = logps.exp()
    if reverse:
        return (ratio - kl).mul_(p)
    near = -p * torch.expm1(-ratio)
    return torch.where(ratio.abs() < 1, near, p - (logps - ratio).exp())
