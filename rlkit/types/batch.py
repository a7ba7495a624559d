"""`RolloutBatch` holds a step's rollouts as tensors, and `TrainBatch` what to learn from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Column(StrEnum):
    """Columns of a `RolloutBatch` that the trainer fills only for algorithms that need them."""

    old_logps = "old_logps"
    ref_logps = "ref_logps"
    values = "values"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutBatch:
    """This batch holds samples with their rewards, before any learning signal.

    Rows of a group are adjacent.
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    completion_ids: Int[Tensor, "B C"]
    completion_mask: Bool[Tensor, "B C"]
    """True on sampled tokens, the stop token included: all that loss, KL and ratios may see."""
    sampling_logps: Float[Tensor, "B C"]
    """Logps reported by the generator; 0.0 where `completion_mask` is False."""
    rewards: Float[Tensor, " B"]
    """Weighted sum of the reward functions."""
    reward_components: Float[Tensor, "B K"]
    """Raw value of each reward function, in configuration order; NaN = not applicable."""
    reward_weights: Float[Tensor, " K"]
    group_ids: Int[Tensor, " B"]
    """Equal for samples of one prompt; 0, 1, 2, ... in row order."""
    truncated: Bool[Tensor, " B"]
    """True when sampling ended at the length limit, without a stop token."""
    policy_version: Int[Tensor, " B"]
    old_logps: Float[Tensor, "B C"] | None = None
    """Logps of the policy at the start of this batch's updates, if the algorithm needs them."""
    ref_logps: Float[Tensor, "B C"] | None = None
    """Logps of the reference policy (adapter off)."""
    values: Float[Tensor, "B C"] | None = None
    """The critic's value of the state before each completion token, at the start of the updates."""
    spliced: Bool[Tensor, "B C"] | None = None
    """True on tokens that an environment wrote between turns; None = there are none. They are
    context for what follows, and nothing else."""
    turn_ids: Int[Tensor, "B C"] | None = None
    """The number of each sampled token's turn, from 0 on, and 0 elsewhere; None = one turn."""
    turn_rewards: Float[Tensor, "B C"] | None = None
    """Each turn's reward at its last sampled token, 0.0 elsewhere: a row adds up to its reward.
    None = the whole reward belongs to the last sampled token."""
    restarts: Bool[Tensor, "B C"] | None = None
    """True on tokens at which the model's context begins afresh: from there on a row is a sequence
    of its own to the model, and the same row to everything else. None = there are none."""

    @property
    def exists(self) -> Bool[Tensor, "B C"]:
        """Return the tokens of the row, sampled or not: context, positions and lengths."""
        if self.spliced is None:
            return self.completion_mask
        return self.completion_mask | self.spliced

    def rows(self, index: Int[Tensor, " R"]) -> RolloutBatch:
        """Return the sub-batch of rows `index`, in that order."""
        return _take_rows(self, index)

    def to(self, device: torch.device) -> RolloutBatch:
        """Return the same batch on `device`."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in columns.items() if v is not None})

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainBatch:
    """This is a rollout batch with its learning signal and the GLOBAL denominators of its loss.

    Losses of any partition of the rows add up to the loss of the whole batch: `num_tokens` and
    `num_sequences` describe the whole optimisation batch, and `rows` keeps them.
    """

    rollout: RolloutBatch
    loss_mask: Bool[Tensor, "B C"]
    """The one mask of numerators and denominators: completion tokens that the loss may use."""
    advantages: Float[Tensor, "B C"]
    """0.0 where `loss_mask` is False."""
    returns: Float[Tensor, "B C"] | None
    """Regression targets of the critic, if there is one."""
    num_tokens: int
    """Number of True entries of `loss_mask` in the whole optimisation batch; at least 1."""
    num_sequences: int
    """Number of rows with a True entry of `loss_mask`, likewise; at least 1."""

    @classmethod
    def prepared(
        cls,
        rollout: RolloutBatch,
        *,
        loss_mask: Bool[Tensor, "B C"],
        advantages: Float[Tensor, "B C"],
        returns: Float[Tensor, "B C"] | None = None,
    ) -> TrainBatch:
        """Return the optimisation batch of `rollout`, its denominators counted from `loss_mask`.

        This is how `Algorithm.prepare` makes its result.

        Args:
            rollout: the samples, in the order in which the loss wants them.
            loss_mask: completion tokens that the loss may use, a part of `completion_mask`.
            advantages: one number a token; what stands outside `loss_mask` is set to 0.
            returns: the critic's targets, None without a critic; likewise set to 0.
        """
        num_tokens, num_sequences = _denominators(loss_mask)
        return cls(
            rollout=rollout,
            loss_mask=loss_mask,
            advantages=advantages.masked_fill(~loss_mask, 0.0),
            returns=None if returns is None else returns.masked_fill(~loss_mask, 0.0),
            num_tokens=num_tokens,
            num_sequences=num_sequences,
        )

    def rows(self, index: Int[Tensor, " R"]) -> TrainBatch:
        """Return the rows `index` as a micro-batch of the same batch: denominators stay."""
        return _take_rows(self, index)

    def minibatch(self, index: Int[Tensor, " R"]) -> TrainBatch:
        """Return the rows `index` as a batch of their own: denominators are counted anew."""
        part = self.rows(index)
        num_tokens, num_sequences = _denominators(part.loss_mask)
        return replace(part, num_tokens=num_tokens, num_sequences=num_sequences)

    def __len__(self) -> int:
        return len(self.rollout)


def _denominators(loss_mask: Tensor) -> tuple[int, int]:
    """Count the tokens and rows that a loss may use, each at least 1, so that it can divide."""
    return max(int(loss_mask.sum()), 1), max(int(loss_mask.any(dim=1).sum()), 1)


_Batch = TypeVar("_Batch", RolloutBatch, TrainBatch)


def _take_rows(batch: _Batch, index: Tensor) -> _Batch:
    """Row-index every tensor field whose first axis is the batch axis."""
    changes: dict[str, object] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, RolloutBatch):
            changes[f.name] = value.rows(index)
        elif isinstance(value, Tensor) and f.name != "reward_weights":
            changes[f.name] = value[index]
    return replace(batch, **changes)  # type: ignore[arg-type]  # names come from fields(batch)
