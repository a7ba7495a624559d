"""Masters, moments and sums of gradients are spread over the ranks (Rajbhandari et al. 2020).

Each tensor that trains belongs to one rank. That rank alone gets the sum of its gradient, keeps its
moments, and steps it. Where the model computes with 16-bit copies, it alone keeps the master too.
Then all ranks get the new values that the model computes with. Whole tensors are dealt out, so that
the step of each is computed as by one process: the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.ranks import Ranks
from rlkit.runtime.torch_compat import norms_all

Groups = list[dict[str, Any]]


class Shares(NamedTuple):
    """The tensors that train, as the ranks of a run share them out."""

    ranks: Ranks
    owners: Mapping[str, int]
    """The rank that keeps each tensor, by the tensor's name."""
    computed: Callable[[], Mapping[str, Tensor]]
    """It brings what the model computes with up to date with this rank's tensors, and returns it.
    These are 16-bit copies, or the tensors that train themselves."""


class Sharded(torch.optim.Optimizer):
    """An optimiser over all tensors that keeps the moments of this rank's alone."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        groups: Groups,
        make: Callable[[Groups], torch.optim.Optimizer],
        shares: Shares,
    ) -> None:
        """Let `make` build the optimiser of this rank's tensors.

        Args:
            parameters: All tensors that train, by name.
            groups: The same tensors as groups of an optimiser.
            make: It builds an optimiser from groups.
            shares: The owner of each tensor.
        """
        super().__init__(groups, {})
        self._ranks, self._shares, self._parameters = shares.ranks, shares, dict(parameters)
        self._owners = {id(leaf): shares.owners[name] for name, leaf in parameters.items()}
        own = [
            {**group, "params": [leaf for leaf in group["params"] if self.is_own(leaf)]}
            for group in self.param_groups
        ]
        self.own = make(own)
        """The optimiser of this rank's tensors."""

    def is_own(self, leaf: Tensor) -> bool:
        """Return whether this rank keeps `leaf` and its moments."""
        return self._owners[id(leaf)] == self._ranks.rank

    def owners(self, leaves: Sequence[Tensor]) -> list[int]:
        """Return the rank that keeps each of `leaves`."""
        return [self._owners[id(leaf)] for leaf in leaves]

    def computed(self) -> dict[str, Tensor]:
        """Return what the model computes with by name, the same on all ranks after a step."""
        return {name: tensor.detach() for name, tensor in self._shares.computed().items()}

    def is_spread(self) -> bool:
        """Return whether tensors of other ranks are not here: only their 16-bit copies are."""
        computed, leaves = self._shares.computed(), self._parameters.items()
        return any(computed[name].data_ptr() != leaf.data_ptr() for name, leaf in leaves)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set the tensors that train, and what the model computes with, on this rank."""
        for name, leaf in self._parameters.items():
            if self.is_own(leaf):
                leaf.copy_(values[name])
        for name, tensor in self.computed().items():
            tensor.copy_(values[name])

    @torch.no_grad()
    def norm(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the 2-norm of the gradients of `leaves`, of which each rank has its own.

        The norms of single tensors meet in their order, so that the sum is that of one process.
        """
        found = torch.zeros(len(leaves), device=leaves[0].device)
        own = [place for place, leaf in enumerate(leaves) if self.is_own(leaf)]
        if own:
            gradients = [leaf.grad for leaf in map(leaves.__getitem__, own)]
            found[own] = torch.stack(norms_all([g for g in gradients if g is not None]))
        self._ranks.add([found])
        total: Tensor = torch.linalg.vector_norm(found)
        return total

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step this rank's tensors, and take the others from the ranks that stepped them."""
        for group, own in zip(self.param_groups, self.own.param_groups, strict=True):
            own["lr"] = group["lr"]
        self._ranks.together(self.own.step)
        computed = self.computed()
        self._ranks.copy_from(
            [self._shares.owners[name] for name in computed], [*computed.values()]
        )
        torch.autograd.graph.increment_version(list(computed.values()))
