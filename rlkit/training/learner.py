"""This module says what training needs of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from rlkit.types import OutputSpec, PolicyOutput, RolloutBatch


class Learner(Protocol):
    """All that training needs of a policy: its logps, and what an optimiser may change."""

    @property
    def adapter(self) -> Mapping[str, Tensor]:
        """Return the part of the policy that trains: an adapter or all weights."""
        ...

    def forward(
        self,
        batch: RolloutBatch,
        *,
        adapter: Mapping[str, Tensor] | None,
        temperature: float,
        spec: OutputSpec,
    ) -> PolicyOutput:
        """Return logps of the completion tokens and what `spec` asks for, differentiable.

        Args:
            batch: The rows.
            adapter: The policy's own `adapter`; None is the reference policy.
            temperature: Divides the logits, > 0.
            spec: The outputs to compute beside the logps.
        """
        ...

    def named_parameters(self) -> dict[str, Tensor]:
        """Return every trainable leaf by a unique name: the policy's, then a critic's."""
        ...
