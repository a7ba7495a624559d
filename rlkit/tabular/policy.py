"""The table is a `Learner`, as `rlkit.policy.policy.Policy` is for a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.oracle.tree import bucketed
from rlkit.tabular.world import TabularWorld, states_of
from rlkit.types import FullKL, KLDirection, OutputSpec, PolicyOutput, RolloutBatch

LOGITS = "logits"
VALUES = "critic/values"


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularPolicy:
    """Logits (P, S, V) start at the reference's and, with a critic, values (P, S) start at 0.

    A prompt's ids are its index alone. Both tensors change in place, in `train_step`.
    """

    world: TabularWorld
    logits: Tensor
    values: Tensor | None = None

    @property
    def adapter(self) -> Mapping[str, Tensor]:
        return {LOGITS: self.logits}

    def named_parameters(self) -> dict[str, Tensor]:
        """Return the leaves that an optimiser steps."""
        critic = {} if self.values is None else {VALUES: self.values}
        return {LOGITS: self.logits, **critic}

    def forward(
        self,
        batch: RolloutBatch,
        *,
        adapter: Mapping[str, Tensor] | None,
        temperature: float,
        spec: OutputSpec,
    ) -> PolicyOutput:
        """Return logps of the completion words and what `spec` asks for.

        Args:
            batch: The rows.
            adapter: The tables that train; None is the reference.
            temperature: Logits are divided by it, > 0.
            spec: The outputs that the algorithm asks for.

        Returns:
            Float64 outputs, 0.0 on padding.

        Raises:
            ValueError: `spec.values` is asked for, and there is no critic.
        """
        mask = batch.completion_mask
        rows = self._rows(batch)[mask]
        words = batch.completion_ids[mask][:, None]
        logits = self.world.ref_logits if adapter is None else adapter[LOGITS]
        table = _log_softmax(logits, rows, temperature)
        values = full_kl = entropy = None
        if spec.entropy or spec.entropy_grad:
            found = -(table.exp() * table).sum(dim=-1)
            entropy = _spread(found if spec.entropy_grad else found.detach(), mask)
        if spec.full_kl is not None:
            reference = _log_softmax(self.world.ref_logits, rows, temperature)
            full_kl = _spread(_divergence(table, reference, spec.full_kl), mask)
        if spec.values:
            if self.values is None:
                raise ValueError("values need a critic, got a policy without one")
            values = _spread(self.values.flatten().index_select(0, rows), mask)
        logps = _spread(table.gather(1, words).squeeze(1), mask)
        return PolicyOutput(logps, entropy, values, full_kl)

    def _rows(self, batch: RolloutBatch) -> Tensor:
        """Return (B, C) row of the table, seen as (P S, V), before each word."""
        prompt = batch.prompt_ids[:, -1:]
        states = states_of(
            batch.completion_ids, batch.completion_mask, num_words=self.world.num_words
        )
        return prompt * len(self.world.tree.prefixes) + states


def new_policy(world: TabularWorld, *, critic: bool) -> TabularPolicy:
    """Return a policy that equals the reference exactly; its critic, if any, says 0 everywhere."""
    logits = world.ref_logits.clone().requires_grad_()
    shape = world.ref_logits.shape[:2]
    values = torch.zeros(shape, dtype=torch.float64, requires_grad=True) if critic else None
    return TabularPolicy(world=world, logits=logits, values=values)


def _log_softmax(logits: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Return (n, V) log-probabilities of the rows."""
    picked = logits.flatten(0, 1).index_select(0, rows)
    return (picked / temperature).log_softmax(dim=-1)


def _divergence(policy: Tensor, reference: Tensor, spec: FullKL) -> Tensor:
    if spec.top_k is not None:
        policy = bucketed(policy, reference, spec.top_k)
        reference = bucketed(reference, reference, spec.top_k)
    reverse = spec.direction is KLDirection.reverse
    first, second = (policy, reference) if reverse else (reference, policy)
    return (first.exp() * (first - second)).sum(dim=-1)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Return one value for each True of `mask`, as (B, C) with 0.0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
