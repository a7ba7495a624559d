# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""One kernel for the full-vocabulary KL of a chunk: value and gradient in the logits per row."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.kernels._head import LogitMap
from rlkit.kernels._triton_kernels import LN_2, scaled_logits
from rlkit.kernels._triton_launch import units
from rlkit.runtime.triton import tl, triton

_BLOCK = 4096
"""Words a program holds at a time."""


@triton.jit
def _load_logits(product, bias, cols, V, gain, cap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr):
    """log2(e) logits of some words (-inf beyond V), and the softcap's slopes."""
    x = tl.load(product + cols, mask=cols < V, other=0.0)
    if BIAS:
        x += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)
    z, slope = scaled_logits(x, gain, cap, SOFTCAP)
    return tl.where(cols < V, z, -float("inf")), slope


@triton.jit
def _excess(s):
    """s + exp(-s) - 1 for |s| < 1, by its series: no cancellation."""
    tail = 1 / 40320 - s * (1 / 362880 - s * (1 / 3628800))
    tail = 1 / 24 - s * (1 / 120 - s * (1 / 720 - s * (1 / 5040 - s * tail)))
    return s * s * (0.5 - s * (1 / 6 - s * tail))


@triton.jit
def _kl_rows(
    policy, ref, bias, values, gradient, V, stride, stride_g, gain, cap,
    REVERSE: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    policy += row * stride
    ref += row * stride
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
    lse_p, lse_q = top_p + tl.log2(sum_p), top_q + tl.log2(sum_q)
    kl = 0.0
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z, _ = _load_logits(policy, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        r, _ = _load_logits(ref, bias, cols, V, gain, cap, BIAS, SOFTCAP)
        d = tl.where(cols < V, LN_2 * ((z - lse_p) - (r - lse_q)), 0.0)
        p, q = tl.exp2(z - lse_p), tl.exp2(r - lse_q)
        if REVERSE:
            terms = tl.where(tl.abs(d) < 1, p * _excess(d), p * d + (q - p))
        else:
            terms = tl.where(tl.abs(d) < 1, q * _excess(-d), (p - q) - q * d)
        kl += tl.sum(terms, 0)
    tl.store(values + row, kl)
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
            tl.store(gradient + row * stride_g + cols, dz.to(tl.bfloat16), mask=cols < V)


def kl_rows(
    policy: Tensor,
    ref: Tensor,
    logit_map: LogitMap,
    values: Tensor,
    *,
    reverse: bool,
    gradient: bool,
) -> Tensor | None:
    """Fills `values` from the float32 products h W^T (R, V) of policy and reference.

    Returns d KL / d product divided by the map's gain, in bfloat16, if `gradient`.
    """
    rows, words = policy.shape
    cap, gain = units(logit_map)
    dz = torch.empty_like(policy, dtype=torch.bfloat16) if gradient else None
    out = policy if dz is None else dz
    bias = values if logit_map.bias is None else logit_map.bias.contiguous()
    _kl_rows[(rows,)](
        policy, ref, bias, values, out, words, policy.stride(0), out.stride(0), gain, cap,
        REVERSE=reverse, BIAS=logit_map.bias is not None, SOFTCAP=logit_map.softcap is not None,
        GRADIENT=gradient, BLOCK=min(_BLOCK, triton.next_power_of_2(words)), num_warps=8,
    )  # fmt: skip
    return dz
