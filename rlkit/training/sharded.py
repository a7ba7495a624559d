"""The moments of AdamW are spread over the ranks, as in ZeRO-1 (Rajbhandari et al. 2020).

Each tensor belongs to one rank, which keeps its moments and steps it. Then all ranks get the new
values. Whole tensors are dealt out, so that the step of each is computed as by one process: the
result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlkit.ranks import Ranks
from rlkit.ranks.bits import as_integers
from rlkit.ranks.deal import deal

Groups = list[dict[str, Any]]


class Sharded(torch.optim.Optimizer):
    """An optimiser over all tensors that keeps the moments of this rank's alone."""

    def __init__(
        self, groups: Groups, make: Callable[[Groups], torch.optim.Optimizer], ranks: Ranks
    ) -> None:
        """Deal the tensors of `groups` out, and let `make` build the optimiser of this rank's."""
        super().__init__(groups, {})
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        owners = deal([leaf.numel() for leaf in leaves], ranks.size)
        self._ranks = ranks
        owned = zip(leaves, owners, strict=True)
        self._foreign = {id(leaf): leaf for leaf, owner in owned if owner != ranks.rank}
        own = [
            {**group, "params": [leaf for leaf in group["params"] if self.is_own(leaf)]}
            for group in self.param_groups
        ]
        self.own = make(own)
        """The optimiser of this rank's tensors."""

    def is_own(self, leaf: Tensor) -> bool:
        """Return whether this rank keeps the moments of `leaf`."""
        return id(leaf) not in self._foreign

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step this rank's tensors, and take the others from the ranks that stepped them."""
        for group, own in zip(self.param_groups, self.own.param_groups, strict=True):
            own["lr"] = group["lr"]
        self._ranks.together(self.own.step)
        for leaf in self._foreign.values():
            leaf.zero_()
        # Added as integers, zeros change no bit of a value: not that of -0.0 either.
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        self._ranks.add([as_integers(leaf) for leaf in leaves])
