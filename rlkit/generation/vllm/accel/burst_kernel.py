# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Compute the logp of one token a row, with one pass over the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

_BLOCK = 4096


def token_logps(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return log softmax(logits)[token], (rows,) float32, of logits (rows, words), ids (rows,).

    It is NaN where a row holds NaN. -inf, the logit of a word that is masked out, is fine.
    """
    rows, words = logits.shape
    parts = triton.cdiv(words, _BLOCK)
    maxima = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    sums, logps = torch.empty_like(maxima), maxima.new_empty(rows)
    _parts_kernel[(rows, parts)](logits, logits.stride(0), maxima, sums, words, BLOCK=_BLOCK)
    _logps_kernel[(rows,)](
        logits,
        logits.stride(0),
        token_ids,
        maxima,
        sums,
        logps,
        parts,
        PARTS=triton.next_power_of_2(parts),
        num_warps=1,
    )
    return logps


@triton.jit
def _parts_kernel(logits, stride, maxima, sums, words, BLOCK: tl.constexpr):
    """Find the largest logit, and the sum of exponentials off it, of one block of one row."""
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < words, other=-float("inf"))
    x = x.to(tl.float32)
    top = tl.max(x)
    # A block of masked words alone: -inf - 0, where -inf - -inf would be NaN.
    base = tl.where(top == -float("inf"), 0.0, top)
    place = row * tl.num_programs(1) + part
    tl.store(maxima + place, top)
    tl.store(sums + place, tl.sum(tl.exp(x - base)))


@triton.jit
def _logps_kernel(
    logits, stride, token_ids, maxima, sums, logps, parts, PARTS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, PARTS)
    tops = tl.load(maxima + row * parts + at, mask=at < parts, other=-float("inf"))
    top = tl.max(tops)
    total = tl.sum(
        tl.load(sums + row * parts + at, mask=at < parts, other=0.0) * tl.exp(tops - top)
    )
    token = tl.load(token_ids + row)
    x = tl.load(logits + row.to(tl.int64) * stride + token).to(tl.float32)
    tl.store(logps + row, x - top - tl.log(total))
