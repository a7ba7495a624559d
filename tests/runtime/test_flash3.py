"""FlashAttention 3 is taken only where it agrees with the second; here with one made of torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.runtime import flash3


def attend(
    qkv: tuple[Tensor, Tensor, Tensor], shape: flash3.Shape, *, scale: float, left: int
) -> tuple[Tensor, Tensor]:
    """Causal attention to the end of each sequence's keys, by matrices of scores."""
    (q, k, v), (ends_q, ends_k, _, _) = qkv, shape
    outputs, sums = [], []
    for i in range(len(ends_q) - 1):
        queries = q[ends_q[i] : ends_q[i + 1]].float()
        share = q.shape[1] // k.shape[1]
        keys, values = (
            x[ends_k[i] : ends_k[i + 1]].float().repeat_interleave(share, 1) for x in (k, v)
        )
        ahead = len(keys) - len(queries)
        distance = torch.arange(len(queries))[:, None] + ahead - torch.arange(len(keys))
        seen = (distance >= 0) & ((distance <= left) | (left < 0))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        scores = scores.masked_fill(~seen, float("-inf"))
        sums.append(scores.logsumexp(-1))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(outputs).to(q.dtype), torch.cat(sums, 1)


@dataclass
class Library:
    """It stands for `vllm.vllm_flash_attn`, with an error of one's choice."""

    off: float = 0.0
    looks_back: int = 0

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        max_seqlen_q: int,
        cu_seqlens_q: Tensor,
        max_seqlen_k: int,
        cu_seqlens_k: Tensor,
        softmax_scale: float,
        causal: bool,
        window_size: list[int],
        return_softmax_lse: bool,
        num_splits: int,
        fa_version: int,
    ) -> tuple[Tensor, Tensor]:
        assert causal and return_softmax_lse and (num_splits, fa_version) == (1, 3)
        left = window_size[0] if window_size[0] < 0 else window_size[0] + self.looks_back
        shape = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        out, lse = attend((q, k, v), shape, scale=softmax_scale, left=left)
        return out + self.off, lse


def agrees(library: Library) -> bool:
    return flash3._agrees(library, attend, torch.device("cpu"), torch.bfloat16, 64)


def test_only_a_library_that_agrees_is_taken() -> None:
    assert agrees(Library())
    assert not agrees(Library(off=0.1))
    assert not agrees(Library(looks_back=1))


def test_a_cpu_and_a_process_without_vllm_keep_the_second() -> None:
    assert flash3.forward_of(torch.zeros(4, 2, 64), attend) is None
