"""torch's own collectives over the ranks of a run, for libraries that need its default group."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlkit.ranks.base import RankError

_BACKENDS = {"cuda": "cuda:nccl,cpu:gloo", "cpu": "gloo"}
_LATE = timedelta(seconds=120)
"""Ranks come to a gather together; the slowest may still compile its first kernels."""


def mesh_of(store: Store, *, rank: int, size: int, device: torch.device) -> DeviceMesh:
    """Return all ranks as one dimension, over torch's default group.

    An engine that all ranks are together has made that group already. It is the same ranks in the
    same order, so it serves both.

    Args:
        store: A part of the ranks' common store that nobody else uses.
        rank: The number of this rank.
        size: The number of ranks.
        device: The device of the tensors.

    Raises:
        RankError: The default group is of other processes, such as an engine of this rank alone.
    """
    if not distributed.is_initialized():
        distributed.init_process_group(
            _BACKENDS[device.type], store=store, rank=rank, world_size=size, timeout=_LATE
        )
    if distributed.get_world_size() != size:
        there = distributed.get_world_size()
        raise RankError(f"torch's default group must be of all {size} ranks, got {there}")
    return init_device_mesh(device.type, (size,))
