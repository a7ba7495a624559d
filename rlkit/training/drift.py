"""All ranks hold the same parameters, bit for bit; this module notices when they no longer do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlkit.ranks import RankError, Ranks
from rlkit.ranks.bits import as_integers
from rlkit.training.sharded import Sharded
from rlkit.training.update import TrainState

_LOOK_EVERY = 25
"""Updates between two looks, as with the comparison of vLLM and the trainer."""


def check_same_adapter(state: TrainState, ranks: Ranks) -> None:
    """Raise RankError when two ranks hold other bits after an update; looks every 25 updates."""
    if ranks.size == 1 or state.updates % _LOOK_EVERY:
        return
    optimizer = state.optimizer
    held = state.learner.adapter
    if isinstance(optimizer, Sharded):  # masters differ from rank to rank, by design
        held = optimizer.computed()
    found = ranks.share(lambda: bit_sum(held).to_bytes(8, "big", signed=True))
    odd = [rank for rank, bits in enumerate(found) if bits != found[0]]
    if odd:
        raise RankError(
            f"rank {odd[0]} holds other parameters than rank 0 after update {state.updates}: "
            "its memory or its arithmetic is faulty"
        )


def bit_sum(tensors: Mapping[str, Tensor]) -> int:
    """Return the sum, modulo 2^64, of the numbers that the bits of all elements are."""
    sums = [as_integers(t).sum(dtype=torch.int64).reshape(1) for t in tensors.values()]
    return int(torch.cat(sums).sum()) if sums else 0
