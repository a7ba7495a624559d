# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""One kernel computes the full-vocabulary KL of a chunk: its value and its gradient per row."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.kernels._logps_kernels import LN_2, scaled_logits
from rlkit.kernels._logps_launch import units
from rlkit.kernels.lm_head import LogitMap
from rlkit.runtime.triton import tl, triton

_BLOCK = 4096
"""Words a program holds at a time."""


@triton.jit
def _load_logits(product, bias, cols, V, gain, cap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr):
    """Return log2(e) logits of some words (-inf beyond V), and the softcap's slopes."""
    x = tl.load(product + cols, mask=cols < V, other=0.0)
    if BIAS:
        x += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)
    z, slope = scaled_logits(x, gain, cap, SOFTCAP)
    return tl.where(cols < V, z, -float("inf")), slope


@triton.jit
def _excess(s):
    """Return s + exp(-s) - 1 for |s| < 1, by its series: no cancellation."""
    tail = 1 / 40320 - s * (1 / 362880 - s * (1 / 3628800))
    tail = 1 / 24 - s * (1 / 120 - s * (1 / 720 - s * (1 / 5040 - s * tail)))
    return s * s * (0.5 - s * (1 / 6 - s * tail))


@triton.jit
def _log_sums(
    policy, ref, bias, V, gain, cap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return log2 of the sums of exponentials of both rows."""
    top_p, top_q = -float("inf"), -float("inf")
    sum_p, sum_q = 0.0, 0.0
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, _ = _load_logits(policy, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        r, _ = _load_logits(ref, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        new_p, new_q = tl.maximum(top_p, tl.max(z, 0)), tl.maximum(top_q, tl.max(r, 0))
        sum_p = sum_p * tl.exp2(top_p - new_p) + tl.sum(tl.exp2(z - new_p), 0)
        sum_q = sum_q * tl.exp2(top_q - new_q) + tl.sum(tl.exp2(r - new_q), 0)
        top_p, top_q = new_p, new_q
    return top_p + tl.log2(sum_p), top_q + tl.log2(sum_q)


@triton.jit
def _terms(d, p, q, REVERSE: tl.constexpr):
    """Return the summands of the KL, all >= 0, from d = log(p / q)."""
    if REVERSE:
        return tl.where(tl.abs(d) < 1, p * _excess(d), p * d + (q - p))
    else:
        return tl.where(tl.abs(d) < 1, q * _excess(-d), (p - q) - q * d)


@triton.jit
def _exponent(most, heaviest, kl):
    """Return the power of two that brings a row's gradient below float16's end, 2^16.

    |p (d - kl)| <= max p |d| + kl max p for the reverse KL; heaviest is 0 for the forward one.
    """
    bound = tl.maximum(most + tl.maximum(kl, 0.0) * heaviest, 1e-30)
    return tl.ceil(tl.log2(bound)) - 15.0


@triton.jit
def _kl_rows(
    policy, ref, bias, values, factors, gradient, V, stride, stride_g, gain, cap,
    REVERSE: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr,
    SHIFTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the KL of one row and its gradient in the products, divided by the map's gain.

    With SHIFTED, the gradient is stored in float16 divided by a power of two, kept in factors.
    """
    row = tl.program_id(0).to(tl.int64)
    policy += row * stride
    ref += row * stride
    lse_p, lse_q = _log_sums(policy, ref, bias, V, gain, cap, BIAS, SOFTCAP, BLOCK)
    kl, most, heaviest = 0.0, 0.0, 0.0
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, _ = _load_logits(policy, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        r, _ = _load_logits(ref, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        d = tl.where(cols < V, LN_2 * ((z - lse_p) - (r - lse_q)), 0.0)
        p, q = tl.exp2(z - lse_p), tl.exp2(r - lse_q)
        kl += tl.sum(_terms(d, p, q, REVERSE), 0)
        if SHIFTED:
            if REVERSE:
                most = tl.maximum(most, tl.max(tl.where(p > 0, tl.abs(p * d), 0.0), 0))
                heaviest = tl.maximum(heaviest, tl.max(p, 0))
            else:
                most = tl.maximum(most, tl.max(tl.abs(p - q), 0))
    tl.store(values + row, kl)
    scale = 1.0
    if SHIFTED:
        exponent = _exponent(most, heaviest, kl)
        scale = tl.exp2(-exponent)
        tl.store(factors + row, tl.exp2(exponent))
    if GRADIENT:
        for start in range(0, V, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            z, slope = _load_logits(policy, bias, cols, V, gain, cap, BIAS, SOFTCAP)
            r, _ = _load_logits(ref, bias, cols, V, gain, cap, BIAS, SOFTCAP)
            d = tl.where(cols < V, LN_2 * ((z - lse_p) - (r - lse_q)), 0.0)
            p = tl.exp2(z - lse_p)
            if REVERSE:
                dz = p * (d - kl)
            else:
                dz = tl.where(tl.abs(d) < 1, p * (d - _excess(d)), p - tl.exp2(r - lse_q))
            if SOFTCAP:
                dz *= slope
            dz = (dz * scale).to(gradient.dtype.element_ty)
            tl.store(gradient + row * stride_g + cols, dz, mask=cols < V)


def kl_rows(
    policy: Tensor,
    ref: Tensor,
    logit_map: LogitMap,
    dtype: torch.dtype,
    *,
    reverse: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor | float]:
    """Compute the KL per row from the float32 products h W^T (R, V) of policy and reference.

    Args:
        policy: Products of the policy.
        ref: Products of the reference.
        logit_map: The map from products to logits.
        dtype: bfloat16 or float16, that of the gradient.
        reverse: Whether it is KL(policy || ref).
        gradient: Whether the gradient is wanted.

    Returns:
        The values, and d KL / d product divided by the map's gain and by a factor per row.
    """
    rows, words = policy.shape
    cap, gain = units(logit_map)
    values = policy.new_empty(rows)
    dz = torch.empty_like(policy, dtype=dtype) if gradient else None
    shifted = gradient and dtype == torch.float16
    factors = torch.empty_like(values) if shifted else values
    out = policy if dz is None else dz
    bias = values if logit_map.bias is None else logit_map.bias.contiguous()
    _kl_rows[(rows,)](
        policy, ref, bias, values, factors, out, words, policy.stride(0), out.stride(0), gain, cap,
        REVERSE=reverse, BIAS=logit_map.bias is not None, SOFTCAP=logit_map.softcap is not None,
        GRADIENT=gradient, SHIFTED=shifted, BLOCK=min(_BLOCK, triton.next_power_of_2(words)),
        num_warps=8,
    )  # fmt: skip
    return values, dz, factors if shifted else 1.0
