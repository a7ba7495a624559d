"""Compute the KL divergence of some rows of logits, and its gradient; for `rlkit.kernels.kl`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.kernels.lm_head import LogitMap


class KLChunk(NamedTuple):
    """KL of some rows, and its gradient factor (R,) times dz (R, V) in the products over gain."""

    values: Tensor
    dz: Tensor | None
    factor: Tensor | float


def fits(hidden: Tensor, top_k: int | None) -> bool:
    """Tell if the fused kernel takes these rows: it has no top k, and needs Ampere for bfloat16."""
    if not hidden.is_cuda or top_k is not None:
        return False
    if hidden.dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    return hidden.dtype == torch.float16


def fused_chunk(
    product: Tensor,
    ref_product: Tensor,
    logit_map: LogitMap,
    *,
    dtype: torch.dtype,
    reverse: bool,
    gradient: bool,
) -> KLChunk:
    """Do what `chunk` does with one kernel, without `top_k`.

    Args:
        product: Float32 products h W^T (R, V) of the policy.
        ref_product: Those of the reference.
        logit_map: The map from products to logits.
        dtype: That of the hidden states, bfloat16 or float16; the gradient gets it too.
        reverse: Whether it is KL(policy || ref).
        gradient: Whether the gradient is wanted.

    Returns:
        The values and, if wanted, the gradient.
    """
    from rlkit.kernels._kl_triton import kl_rows

    found = kl_rows(product, ref_product, logit_map, dtype, reverse=reverse, gradient=gradient)
    return KLChunk(*found)


def chunk(
    product: Tensor,
    ref_product: Tensor,
    logit_map: LogitMap,
    *,
    reverse: bool,
    top_k: int | None,
    gradient: bool,
) -> KLChunk:
    """Return the KL of some rows from both products h W^T (R, V), which are overwritten.

    Args:
        product: Products of the policy.
        ref_product: Products of the reference.
        logit_map: The map from products to logits.
        reverse: Whether it is KL(policy || ref).
        top_k: Words kept apart from one bucket of all others; None keeps all apart.
        gradient: Whether the gradient is wanted.

    Returns:
        The values and, if wanted, the gradient.
    """
    z = logit_map.apply_(product)
    ref_logps = logit_map.apply_(ref_product).log_softmax(1)
    slope = logit_map.slope(z) if gradient else None
    logps = z.log_softmax(1)
    ratio = _log_ratio(logps, ref_logps, top_k)
    values = _divergence(logps, ref_logps, ratio, reverse)
    if not gradient:
        return KLChunk(values, None, 1.0)
    dz = _grad_logits(logps, ratio, values[:, None], reverse)
    if slope is not None:
        dz.mul_(slope)
    # A factor per row keeps 16-bit copies of dz in range when p and q almost agree.
    peak = dz.abs().amax(1, keepdim=True).clamp_min_(1e-30)
    return KLChunk(values, dz.div_(peak), peak.squeeze(1))


def _log_ratio(logps: Tensor, ref_logps: Tensor, top_k: int | None) -> Tensor:
    """Return log(p_v / q_v), or that of the bucket's probabilities for words outside the top k."""
    ratio = logps - ref_logps
    if top_k is None or top_k >= logps.shape[1]:
        return ratio
    kept = ref_logps.topk(top_k, dim=1).indices
    tail = logps.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
    tail -= ref_logps.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
    return tail.expand_as(ratio).scatter(1, kept, ratio.gather(1, kept))


def _divergence(logps: Tensor, ref_logps: Tensor, ratio: Tensor, reverse: bool) -> Tensor:
    """Return sum_v a (s + exp(-s) - 1), s = log(a / b): sum_v a s, as a and b both add to 1.

    Words of a bucket share s, so that their terms (a exp(-s) or b) add up to the bucket's.
    """
    log_a, log_b, s = (logps, ref_logps, ratio) if reverse else (ref_logps, logps, -ratio)
    a = log_a.exp()
    small = a * (s + torch.expm1(-s))
    large = a * s + (log_b.exp() - a)  # exp(-s) alone may overflow where a vanishes
    return torch.where(s.abs() < 1, small, large).sum(1)


def _grad_logits(logps: Tensor, ratio: Tensor, kl: Tensor, reverse: bool) -> Tensor:
    """Return d KL / d z."""
    p = logps.exp()
    if reverse:
        return (ratio - kl).mul_(p)
    near = -p * torch.expm1(-ratio)
    return torch.where(ratio.abs() < 1, near, p - (logps - ratio).exp())
