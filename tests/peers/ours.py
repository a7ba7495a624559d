"""rlkit's side of the comparison: ragged random batches, and objectives by their configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, build
from rlkit.oracle.compose import composed
from rlkit.types import (
    Algorithm,
    LossOutput,
    PolicyOutput,
    RolloutBatch,
    Setting,
    TrainBatch,
)

GROUPS, GROUP, WIDTH = 6, 4, 16
ROWS = GROUPS * GROUP
END, WORD = 2, 7
"""Token ids: the end of a completion, and any other word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One batch and the outputs of the current policy on it, all float64."""

    rollout: RolloutBatch
    logps: Tensor
    entropy: Tensor
    values: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What gradients are compared for."""
        return self.logps, self.entropy, self.values

    def within(self, distance: float) -> Case:
        """The same with log-ratios of at most `distance`, policy to old and to reference."""
        rollout = self.rollout
        assert rollout.old_logps is not None and rollout.ref_logps is not None
        logps = rollout.old_logps + (self.logps - rollout.old_logps).clamp(-distance, distance)
        ref = logps + (rollout.ref_logps - logps).clamp(-distance, distance)
        return replace(self, logps=logps, rollout=replace(rollout, ref_logps=ref))

    def with_rewards(self, rewards: Tensor) -> Case:
        """The same with other rewards."""
        return replace(self, rollout=replace(self.rollout, rewards=rewards))

    @property
    def mask(self) -> Tensor:
        """The completion mask as the numbers that peers multiply with."""
        return self.rollout.completion_mask.double()


def random_case(
    seed: int, *, group: int = GROUP, reward_scale: float = 1.0, shortest: int = 1
) -> Case:
    """Completions of `shortest` to `WIDTH` tokens; log-ratios of standard deviation 0.8, so that
    every clip has tokens on both sides; random numbers on padding, which must not matter.

    `policy_version` numbers the rows, because pairs come back in another order.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, WIDTH)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(shape, dtype=torch.float64, generator=generator)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, dtype=torch.float64, generator=generator)

    lengths = torch.randint(shortest, WIDTH + 1, (ROWS,), generator=generator)
    lengths[:2] = torch.tensor([WIDTH, shortest])
    mask = torch.arange(WIDTH) < lengths[:, None]
    truncated = uniform(ROWS) < 0.3
    ids = torch.full(shape, WORD)
    ids[torch.arange(ROWS), lengths - 1] = torch.where(truncated, WORD, END)
    old = -3.0 * uniform(*shape)
    components = reward_scale * uniform(ROWS, 2)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    values = reward_scale * (uniform(*shape) + 0.5)
    rollout = RolloutBatch(
        prompt_ids=torch.full((ROWS, 2), WORD),
        prompt_mask=torch.ones(ROWS, 2, dtype=torch.bool),
        completion_ids=ids.masked_fill(~mask, 0),
        completion_mask=mask,
        sampling_logps=(old + normal(0.5)).float().double(),  # TRL stores these in float32
        rewards=components @ weights,
        reward_components=components,
        reward_weights=weights,
        group_ids=torch.arange(ROWS) // group,
        truncated=truncated,
        policy_version=torch.arange(ROWS),
        old_logps=old,
        ref_logps=old + normal(0.5),
        values=values,
    )
    return Case(
        rollout=rollout,
        logps=old + normal(0.8),
        entropy=uniform(*shape).float().double(),  # its quantile is taken in float32 by TRL
        values=values + normal(0.3),
    )


class Objective:
    """The algorithm of `rlkit {overrides}`, with batches of `group` completions per prompt."""

    def __init__(self, *overrides: str, updates: int = 2, group: int = GROUP) -> None:
        objective = composed(*overrides, f"algorithm.group_size={group}")
        setting = Setting(group, WIDTH, updates, microbatched=False)
        self.algorithm: Algorithm = build(objective, setting)
        self.correction: CorrectionConfig = objective.correction

    def prepare(self, case: Case) -> TrainBatch:
        """What the algorithm makes of the rewards."""
        return self.algorithm.prepare(case.rollout)

    def run(self, case: Case, leaves: Sequence[Tensor], *, splits: int = 1) -> LossOutput:
        """Loss and metrics from rewards and policy outputs, summed over `splits` micro-batches."""
        batch = self.prepare(case)
        parts = [
            self._part(batch.rows(rows), leaves) for rows in torch.arange(len(batch)).chunk(splits)
        ]
        metrics = {name: sum_of([p.metrics[name] for p in parts]) for name in parts[0].metrics}
        return LossOutput(sum_of([part.loss for part in parts]), metrics)

    def loss(self, case: Case, *, splits: int = 1) -> Callable[..., Tensor]:
        """The loss as a function of the leaves."""
        return lambda *leaves: self.run(case, leaves, splits=splits).loss

    def _part(self, batch: TrainBatch, leaves: Sequence[Tensor]) -> LossOutput:
        rows = batch.rollout.policy_version
        logps, entropy, values = (leaf[rows] for leaf in leaves)
        return self.algorithm.loss(PolicyOutput(logps, entropy, values), batch)


def sum_of(scalars: Sequence[Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(list(scalars)).sum()
