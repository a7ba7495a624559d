"""Describe how the tokens of a packed row attend to each other, as a kernel wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from rlkit.kernels.layers import Uses, uses_of
from rlkit.models.packing import PackedRow, Segment, ranges
from rlkit.runtime.torch_compat import has_flash_operators

_ALONE_FROM = 256
"""Segments with at least as many queries get a bucket each: their padding would cost too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """S segments one after another, as FlashAttention wants them."""

    key_tokens: Tensor | None
    """(K,) the token of each segment's keys, one segment after another; None = each its own."""
    key_uses: Uses | None
    """The places at which `key_tokens` has each token; None with it."""
    query_ends: Tensor
    """(S + 1,) int32: segment s has the queries from query_ends[s] to query_ends[s + 1]."""
    key_ends: Tensor
    """(S + 1,) int32, likewise."""
    max_queries: int
    max_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket holds B segments padded to Q queries and K keys."""

    query_tokens: Tensor
    """(B * Q,)"""
    key_tokens: Tensor
    """(B * K,)"""
    num_segments: int
    biases: dict[int | None, Tensor]
    """(B, 1, Q, K) additive masks by window (None: no window); empty for one segment that sees
    nothing but itself: causal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """A layout holds all segments in buckets."""

    buckets: tuple[Bucket, ...]
    places: Tensor
    """(T,) where each token's output is among the outputs of all buckets."""


Packing = Ragged | Padded


def packing_of(row: PackedRow, config: PreTrainedConfig, dtype: torch.dtype) -> Packing:
    """Return how the tokens of `row` attend to each other, made once for all layers of a model."""
    device = row.ids.device
    if can_flash(config, device, dtype):
        return ragged_of(row.segments, device)
    values = config.to_dict()
    window, cap = values.get("sliding_window"), values.get("attn_logit_softcapping")
    return padded_of(row.segments, device, dtype, window=window, softcap=cap is not None)


def can_flash(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether FlashAttention trains this model: Ampere or newer, 16 bit, no soft cap."""
    values = config.to_dict()
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    if not has_flash_operators():
        return False
    fits = head_dim % 8 == 0 and head_dim <= 256 and values.get("attn_logit_softcapping") is None
    if not fits or device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return flash_trains(head_dim, torch.cuda.get_device_capability(device))


def flash_trains(head_dim: int, capability: tuple[int, int]) -> bool:
    """Tell if FlashAttention 2 has a backward pass for heads of this size on this card.

    Heads of 193 to 224 numbers do not fit the 99 KiB of shared memory of 8.6, 8.9 and 12.x, as
    torch's own check says (sdp_utils.cpp).
    """
    small = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    return capability >= (8, 0) and not (small and 192 < head_dim <= 224)


def ragged_of(segments: Sequence[Segment], device: torch.device) -> Ragged:
    """Return all segments for FlashAttention."""
    key_tokens = key_uses = None
    if any(s.before for s in segments):
        spans = [span for s in segments for span in (*s.before, s.own)]
        key_tokens = ranges(spans).to(device)
        key_uses = uses_of(key_tokens, sum(s.own.length for s in segments))
    queries, keys = [s.own.length for s in segments], [s.num_keys for s in segments]
    return Ragged(
        key_tokens=key_tokens,
        key_uses=key_uses,
        query_ends=_int32([0, *accumulate(queries)], device),
        key_ends=_int32([0, *accumulate(keys)], device),
        max_queries=max(queries),
        max_keys=max(keys),
    )


def padded_of(
    segments: Sequence[Segment],
    device: torch.device,
    dtype: torch.dtype,
    *,
    window: int | None = None,
    softcap: bool = False,
) -> Padded:
    """Put segments into buckets in which the numbers of queries are within a factor of two.

    Args:
        segments: The segments of a packed row, in order.
        device: The device of the tensors.
        dtype: The dtype of the masks.
        window: The most keys that a query sees, its own included; None = all.
        softcap: Whether the model caps its scores, so that every bucket needs a mask.

    Returns:
        The buckets, and the place of each token's output among theirs.
    """
    sizes = [_size_class(i, s) for i, s in enumerate(segments)]
    order = sorted(range(len(segments)), key=lambda i: sizes[i])
    places = torch.empty(sum(s.own.length for s in segments), dtype=torch.long)
    buckets, start = [], 0
    for _, group in groupby(order, key=lambda i: sizes[i]):
        members = [segments[i] for i in group]
        width = max(s.own.length for s in members)
        for row, segment in enumerate(members):
            first, length = segment.own
            places[first : first + length] = start + row * width + torch.arange(length)
        start += len(members) * width
        bucket = _bucket(members, device, dtype, window=window, softcap=softcap)
        buckets.append(bucket)
    return Padded(buckets=tuple(buckets), places=places.to(device))


def _bucket(
    members: Sequence[Segment],
    device: torch.device,
    dtype: torch.dtype,
    *,
    window: int | None,
    softcap: bool,
) -> Bucket:
    num_queries = max(s.own.length for s in members)
    num_keys = max(s.num_keys for s in members)
    own = [s.own.start + torch.arange(s.own.length) for s in members]
    # Of padding, queries are dropped and keys lie in every query's future: their content is free.
    query_tokens = torch.cat([F.pad(x, (0, num_queries - len(x)), value=int(x[-1])) for x in own])
    seen = [_key_tokens(s) for s in members]
    key_tokens = torch.cat([F.pad(x, (0, num_keys - len(x)), value=int(x[-1])) for x in seen])
    offsets = torch.tensor([s.num_keys - s.own.length for s in members], device=device)
    steps = torch.arange(num_queries, device=device)[:, None]
    distance = offsets[:, None, None] + steps - torch.arange(num_keys, device=device)
    windows = {None} | ({window} if window is not None and window < num_keys else set())
    causal = len(members) == 1 and not members[0].before and windows == {None}
    biases = {} if causal and not softcap else {w: _bias(distance, w, dtype) for w in windows}
    return Bucket(
        query_tokens=query_tokens.to(device),
        key_tokens=key_tokens.to(device),
        num_segments=len(members),
        biases=biases,
    )


def _bias(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the (B, 1, Q, K) mask, to be added, of the (B, Q, K) distances from key to query."""
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    # CUDA's attention kernels copy a mask whose rows are not aligned to 16 elements, per layer.
    num_keys = distance.shape[2]
    aligned = -(-num_keys // 16) * 16
    bias = torch.zeros(*distance.shape[:2], aligned, dtype=dtype, device=distance.device)
    return bias[..., :num_keys].masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _size_class(index: int, segment: Segment) -> tuple[int, int]:
    length = segment.own.length
    return (0, length.bit_length()) if length < _ALONE_FROM else (1, index)


def _key_tokens(segment: Segment) -> Tensor:
    """Return the tokens that the last token of `segment` sees, itself included, in their order."""
    return ranges((*segment.before, segment.own))


def _int32(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)
