"""Attention over a packed row: each segment sees itself, causally, and the segments before it.

Two ways give equal results. `Ragged` is FlashAttention's kernel for ragged sequences. `Bucket`
makes padded batches of segments of like length, for every device, dtype and option that the kernel
does not take. transformers calls `attend` in place of its own implementations inside
`packed_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from rlkit.kernels.layers import rows_of
from rlkit.models.compat import attention_named
from rlkit.models.layout import Bucket, Packing, Ragged
from rlkit.runtime.torch_compat import flash_backward, flash_forward

_NAME = "rlkit_packed"
_NO_MORE = (None, None, None)
"""No gradients of the packing, the scale and the window."""


@contextmanager
def packed_attention(config: PreTrainedConfig) -> Iterator[None]:
    """Inside, the layers of the model with `config` call `attend` and build no mask.

    Their forward pass must be given `packing=`.
    """
    with attention_named(config, _NAME):
        yield


def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: object,  # transformers passes every layer's options to every implementation
) -> tuple[Tensor, None]:
    """Attend over a packed row, in the place of an attention implementation of transformers.

    Args:
        _module: The attention layer; not used.
        query: (1, H, T, d) queries of the T tokens.
        key: (1, H', T, d) keys; H is a multiple of H'.
        value: (1, H', T, d) values.
        _attention_mask: Always None here; `packing` says who sees whom.
        packing: The segments of the row and what each of them sees.
        scaling: Multiplies the scores; None = d ** -0.5.
        sliding_window: The most keys that a query sees, its own included; None = all.
        softcap: The bound c of c tanh(score / c); None = no bound.
        **_others: Options of other implementations.

    Returns:
        The (1, T, H, d) outputs, and None in the place of attention weights.
    """
    # Squeezed, as the gradient of x[0] is a row of zeros that is written to.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(packing, Ragged):
        if packing.key_tokens is not None and packing.key_uses is not None:
            k, v = (rows_of(x, packing.key_tokens, packing.key_uses) for x in (k, v))
        function: Any = _Flash
        return function.apply(q, k, v, packing, scale, sliding_window)[None], None
    parts = [
        _attend_bucket(q, k, v, bucket, scale=scale, window=sliding_window, softcap=softcap)
        for bucket in packing.buckets
    ]
    return torch.cat(parts).index_select(0, packing.places)[None], None


AttentionInterface.register(_NAME, attend)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return x[index] on the first axis; the gradient of rows taken often is deterministic.

    It is summed in float32. `index_select` would add 16-bit numbers, on CUDA in any order.
    """
    return F.embedding(index, x.flatten(1)).view(-1, *x.shape[1:])


class _Flash(torch.autograd.Function):
    """This calls torch's own FlashAttention by its operators.

    In all versions >= 2.5 they take what its public wrappers do not: groups of queries, other
    numbers of keys than of queries, and a window.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Ragged, scale: float, window: int | None
    ) -> Tensor:
        shape = (packing.query_ends, packing.key_ends, packing.max_queries, packing.max_keys)
        ctx.shape, ctx.scale = shape, scale
        # Its window counts the keys to the left of the query's own.
        ctx.left = -1 if window is None else window - 1
        out, *rest = flash_forward((q, k, v), shape, scale=scale, left=ctx.left)
        ctx.save_for_backward(q, k, v, out, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return *flash_backward(grad, saved, ctx.shape, scale=ctx.scale, left=ctx.left), *_NO_MORE


def _attend_bucket(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Bucket,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Return the (B * Q, H, d) outputs of one bucket."""

    def rows(x: Tensor) -> Tensor:
        return x.view(bucket.num_segments, -1, *x.shape[1:]).transpose(1, 2)

    queries = rows(q.index_select(0, bucket.query_tokens))
    keys, values = rows(take(k, bucket.key_tokens)), rows(take(v, bucket.key_tokens))
    # A window that no key is outside of has no mask of its own.
    bias = bucket.biases.get(window, bucket.biases.get(None))
    if softcap is None and (bias is None or not q.is_cuda):
        grouped = queries.shape[1] != keys.shape[1]
        out = F.scaled_dot_product_attention(
            queries, keys, values, bias, is_causal=bias is None, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(0, 1)
    # CUDA's kernels take no mask with groups of queries, and none takes a soft cap.
    keys, values = (x.repeat_interleave(queries.shape[1] // x.shape[1], 1) for x in (keys, values))
    if softcap is None:
        out = F.scaled_dot_product_attention(queries, keys, values, bias, scale=scale)
    else:
        assert bias is not None
        # In transformers' order and with its float32 softmax, so that samplers agree.
        scores = torch.tanh(queries @ keys.transpose(2, 3) * scale / softcap) * softcap
        out = torch.softmax(scores + bias, -1, dtype=torch.float32).to(q.dtype) @ values
    return out.transpose(1, 2).flatten(0, 1)
