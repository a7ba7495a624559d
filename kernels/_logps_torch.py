"""Compute `selected_logps` in plain PyTorch on any device, one chunk of logits at a time.

A chunk holds all V logits z of some rows. With y the target, m the largest logit of the other
words, E_v = exp(z_v - m) for v != y and E_y = 0, S = sum_v E_v and delta = z_y - m:

    log((1 - p_y) / p_y) = log S - delta        logps = -softplus(log S - delta)
    H = -logps + (1 - p_y) (delta - sum_v E_v (z_v - m) / S)
    dlogps/dh = gain (1 - p_y) (d_y W_y - sum_v E_v d_v W_v / S)

Here d is the softcap's slope. Keeping the target out of every sum and 1 - p_y as a factor of its
own makes both relatively accurate up to p_y -> 1, where W_y - sum_v p_v W_v cancels
(docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlkit.kernels.lm_head import LogitMap, check_range_now, matmul, working
from rlkit.kernels.workspace import chunked_row_bytes


class Forward(NamedTuple):
    """Per-row results; the gradient of a row's logp is `power_of_two(doubt)` * direction."""

    logps: Tensor
    entropy: Tensor | None
    doubt: Tensor
    """1 - p_y (N,), float32."""
    direction: Tensor | None
    """(N, D) in hidden's dtype and of the weights' size, so that float16 holds it."""


def power_of_two(doubt: Tensor) -> Tensor:
    """Return the power of two in (doubt, 2 doubt]; 1 for 0.

    Gradients are kept divided by it: in range for every dtype, and exact to multiply back.
    """
    return torch.ldexp(torch.ones_like(doubt), torch.frexp(doubt).exponent)


def chunks(num_rows: int, row_bytes: int, workspace_bytes: int) -> Iterator[slice]:
    """Yield slices of at most `workspace_bytes // row_bytes` rows, at least one row."""
    step = max(1, workspace_bytes // row_bytes)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    *,
    entropy: bool,
    jacobian: bool,
    workspace_bytes: int,
) -> Forward:
    """Return logps, and on demand entropies and the direction of dlogps/dh, chunk by chunk."""
    check_range_now(targets, weight.shape[0])
    rows, head = hidden.shape[0], working(weight)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    out = Forward(
        logps=hidden.new_empty(rows, dtype=wide),
        entropy=hidden.new_empty(rows, dtype=wide) if entropy else None,
        doubt=hidden.new_empty(rows, dtype=wide),
        direction=torch.empty_like(hidden) if jacobian else None,
    )
    row_bytes = chunked_row_bytes(len(weight), weight.itemsize)
    for chunk in chunks(rows, row_bytes, workspace_bytes):
        z = logit_map.apply_(matmul(working(hidden[chunk]), head.T))
        _forward_chunk(z, head, targets[chunk, None].long(), logit_map, chunk, out)
    return out


def _forward_chunk(
    z: Tensor, head: Tensor, y: Tensor, logit_map: LogitMap, chunk: slice, out: Forward
) -> None:
    slope = logit_map.slope(z) if out.direction is not None else None
    z_y = z.gather(1, y)
    others = z.scatter_(1, y, -torch.inf)
    top = others.amax(1, keepdim=True)
    weights = others.sub_(top).exp_()
    total = weights.sum(1, keepdim=True)
    delta = z_y - top
    log_odds = total.log() - delta
    logps, doubt = -softplus(log_odds), torch.sigmoid(log_odds)
    out.logps[chunk] = logps.squeeze(1)
    out.doubt[chunk] = doubt.squeeze(1)
    if out.entropy is not None:
        mean = -torch.special.entr(weights).sum(1, keepdim=True) / total
        out.entropy[chunk] = (doubt * (delta - mean) - logps).squeeze(1)
    if out.direction is not None:
        target_row = head[y.squeeze(1)].to(z.dtype)
        if slope is not None:
            weights.mul_(slope)
            target_row.mul_(slope.gather(1, y))
        mean_row = matmul(weights.to(head.dtype), head).div_(total)
        mantissa = torch.frexp(doubt).mantissa
        out.direction[chunk] = target_row.sub_(mean_row).mul_(mantissa * logit_map.gain)


class Grads(NamedTuple):
    """These are gradients in the inputs' dtypes, None where not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    result: Forward,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    *,
    needs: tuple[bool, bool, bool],
    workspace_bytes: int,
) -> Grads:
    """Return gradients in hidden, weight and bias, with the logits computed a second time.

    With log p_v = z_v - z_y + logps and entropy H, d/dz_v of a row's loss is
    g (1[v = y] - p_v) - g_H p_v (log p_v + H).
    """
    head, wide = working(weight), result.logps.dtype
    grad_hidden = torch.empty_like(hidden) if needs[0] else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
    grad_bias = weight.new_zeros(weight.shape[0], dtype=wide) if needs[2] else None
    for chunk in chunks(
        hidden.shape[0], chunked_row_bytes(len(weight), weight.itemsize), workspace_bytes
    ):
        h, y = working(hidden[chunk]), targets[chunk, None].long()
        z = logit_map.apply_(matmul(h, head.T))
        slope = logit_map.slope(z)
        dz, dz_y = _grad_logits(z, y, result, grad_logps, grad_entropy, chunk)
        if slope is not None:
            dz_y = dz_y * slope.gather(1, y)
            dz.mul_(slope)
        # One factor for the chunk keeps 16-bit copies of dz in range whatever the loss scale.
        peak = torch.maximum(dz.abs().amax(), dz_y.abs().amax()).clamp_min_(1e-30)
        low = dz.div_(peak).to(head.dtype)
        dz_y = dz_y / peak
        factor = peak * logit_map.gain
        if grad_hidden is not None:
            rows = matmul(low, head).addcmul_(dz_y, head[y.squeeze(1)].to(wide))
            grad_hidden[chunk] = rows.mul_(factor)
        if grad_bias is not None:
            grad_bias.add_(dz.scatter(1, y, dz_y).sum(0) * factor)
        if grad_weight is not None:
            add_grad_weight(grad_weight, low.scatter_(1, y, dz_y.to(low.dtype)), h, factor)
    return Grads(
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or logit_map.bias is None else grad_bias.to(logit_map.bias.dtype),
    )


def _grad_logits(
    z: Tensor,
    y: Tensor,
    result: Forward,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    chunk: slice,
) -> tuple[Tensor, Tensor]:
    """Return d loss / d z (R, V) with the target's column 0, and that column (R, 1)."""
    logps, doubt = result.logps[chunk, None], result.doubt[chunk, None]
    g = grad_logps[chunk, None]
    log_p = z.sub_(z.gather(1, y) - logps).scatter_(1, y, -torch.inf)
    dz_y = g * doubt
    if grad_entropy is None or result.entropy is None:
        return log_p.exp_().mul_(-g), dz_y
    g_entropy, entropy = grad_entropy[chunk, None], result.entropy[chunk, None]
    dz_y = dz_y - g_entropy * logps.exp() * (logps + entropy)
    # p log p through entr: 0 where p underflows, never 0 * -inf.
    p = log_p.exp_()
    p_log_p = torch.special.entr(p).neg_()
    return p.mul_(-(g + g_entropy * entropy)).sub_(p_log_p.mul_(g_entropy)), dz_y


def add_grad_weight(grad_weight: Tensor, dz: Tensor, h: Tensor, factor: Tensor) -> None:
    """Add factor * dz^T h, in slabs no larger than the chunk's logits."""
    step = max(1, dz.numel() // h.shape[1])
    for start in range(0, dz.shape[1], step):
        words = slice(start, start + step)
        grad_weight[words].addcmul_(matmul(dz[:, words].T, h), factor)
