"""A learner small enough to do its gradients by hand: logps that are linear in one leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlkit.types import OutputSpec, PolicyOutput, RolloutBatch


@dataclass
class LinearLearner:
    """Logps are leaf * features, in `dtype`; it remembers the rows of each forward pass."""

    leaf: Tensor
    features: Callable[[RolloutBatch], Tensor]
    dtype: torch.dtype = torch.float32
    rows: list[int] = field(default_factory=list)

    @property
    def adapter(self) -> Mapping[str, Tensor]:
        return {"w": self.leaf}

    def named_parameters(self) -> dict[str, Tensor]:
        return {"w": self.leaf}

    def forward(
        self,
        batch: RolloutBatch,
        *,
        adapter: Mapping[str, Tensor] | None,
        temperature: float,
        spec: OutputSpec,
    ) -> PolicyOutput:
        self.rows.append(len(batch))
        logps = (self.leaf.to(self.dtype) * self.features(batch).to(self.dtype)).float()
        return PolicyOutput(logps, values=logps if spec.values else None)
