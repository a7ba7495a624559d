"""Tensors travel in a few flat messages, not one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rlkit.runtime.torch_compat import copy_all

_BUCKET_BYTES = 1 << 28
"""Small tensors travel together; a copy of all gradients at once would not fit beside them."""


def moved(
    tensors: Sequence[Tensor],
    move: Callable[[Tensor], None],
    span: Callable[[Tensor], AbstractContextManager[None]],
) -> None:
    """Let `move` change the entries of `tensors`, in few calls for each dtype.

    Args:
        tensors: Tensors of one device.
        move: It changes a flat tensor in place.
        span: It measures what is done with a tensor.
    """
    for same in _buckets(tensors):
        with span(same[0]):
            if len(same) == 1 and same[0].is_contiguous():
                move(same[0].view(-1))
                continue
            flat = torch.cat([t.reshape(-1) for t in same])
            move(flat)
            parts = torch.split(flat, [t.numel() for t in same])
            shaped = [part.view_as(tensor) for tensor, part in zip(same, parts, strict=True)]
            copy_all(same, shaped)  # a loop would launch a kernel for each leaf


def by_owner(tensors: Sequence[Tensor], owners: Sequence[int]) -> dict[int, list[Tensor]]:
    """Return the tensors of each rank that has some, in the order of ranks."""
    found: dict[int, list[Tensor]] = {owner: [] for owner in sorted(set(owners))}
    for tensor, owner in zip(tensors, owners, strict=True):
        found[owner].append(tensor)
    return found


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of tensors of one dtype, in order, as large as a message should be."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        bucket: list[Tensor] = []
        held = 0
        for tensor in (t for t in tensors if t.dtype == dtype):
            if bucket and held + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
            bucket.append(tensor)
            held += tensor.nbytes
        yield bucket
