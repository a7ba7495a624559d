"""FlashAttention 3's forward pass on Hopper, out of vLLM's wheel, where a run has vLLM loaded.

torch 2.11 has FlashAttention 2 alone, and vLLM's build of the third is without a backward pass. But
the second's backward pass can take the third's outputs and log-sum-exps, which differ by rounding.
On an H200 it needs half of the time (docs/speed.md).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_MOST_OFF = 0.02
"""Outputs of random rows are below 4; bfloat16 has steps of .016 there."""
Shape = tuple[Tensor, Tensor, int, int]
"""Ends of queries and of keys, and the largest numbers of both, as in `torch_compat`."""
Second = Callable[..., tuple[Tensor, ...]]


def forward_of(q: Tensor, second: Second) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return the forward pass for queries like `q`; None where `second` is to be used.

    `second` is FlashAttention 2, with which it is compared first on a few rows.
    """
    if not q.is_cuda or "vllm" not in sys.modules:
        return None
    return _found(q.device, q.dtype, q.shape[-1], second)


@cache
def _found(
    device: torch.device, dtype: torch.dtype, width: int, second: Second
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    if torch.cuda.get_device_capability(device) != (9, 0):
        return None
    try:
        library: Any = importlib.import_module("vllm.vllm_flash_attn")
        if not library.is_fa_version_supported(3):
            return None
        if not _agrees(library, second, device, dtype, width):
            return None
    except Exception:  # another build of vLLM may lack anything: torch's own always works
        return None

    def forward(
        qkv: tuple[Tensor, Tensor, Tensor], shape: Shape, *, scale: float, left: int
    ) -> tuple[Tensor, Tensor]:
        return _call(library, qkv, shape, scale=scale, left=left)

    return forward


def _call(
    library: Any, qkv: tuple[Tensor, Tensor, Tensor], shape: Shape, *, scale: float, left: int
) -> tuple[Tensor, Tensor]:
    ends_q, ends_k, most_q, most_k = shape
    out, lse, *_ = library.flash_attn_varlen_func(
        *qkv,
        max_seqlen_q=most_q,
        cu_seqlens_q=ends_q,
        max_seqlen_k=most_k,
        cu_seqlens_k=ends_k,
        softmax_scale=scale,
        causal=True,
        window_size=[left, 0] if left >= 0 else [-1, -1],
        return_softmax_lse=True,
        num_splits=1,  # sums in one order, whatever the other rows are
        fa_version=3,
    )
    return out, lse


def _agrees(
    library: Any, second: Second, device: torch.device, dtype: torch.dtype, width: int
) -> bool:
    """Compare the two on random rows, with more keys than queries and with a window."""

    generator = torch.Generator(device).manual_seed(0)

    def noise(tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, width, device=device, generator=generator).to(dtype)

    ends_q = torch.tensor([0, 40, 103], dtype=torch.int32, device=device)
    ends_k = torch.tensor([0, 90, 153], dtype=torch.int32, device=device)
    qkv, shape = (noise(103, 4), noise(153, 2), noise(153, 2)), (ends_q, ends_k, 63, 90)
    for left in (-1, 20):
        out, lse = _call(library, qkv, shape, scale=width**-0.5, left=left)
        truth, its_lse, *_ = second(qkv, shape, scale=width**-0.5, left=left)
        off = float((out.float() - truth.float()).abs().max())
        if lse.shape != its_lse.shape or not off <= _MOST_OFF:
            return False
        if not torch.allclose(lse, its_lse, atol=1e-3):
            return False
    return True
