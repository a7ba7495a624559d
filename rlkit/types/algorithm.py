"""This contract says what an algorithm needs, what it gets and what it returns."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.types.batch import Column, RolloutBatch, TrainBatch


class KLDirection(StrEnum):
    """`reverse` is KL(policy || ref); `forward` is KL(ref || policy)."""

    none = "none"
    reverse = "reverse"
    forward = "forward"


class FullKL(NamedTuple):
    """The full-vocabulary KL divergence that a loss wants from the policy's forward pass."""

    direction: KLDirection
    top_k: int | None = None
    """None: every word; else the reference's `top_k` likeliest words and a bucket for the rest."""


class OutputSpec(NamedTuple):
    """A loss needs these outputs beyond logps of the sampled tokens; each costs forward work."""

    entropy: bool = False
    """Fill `PolicyOutput.entropy`."""
    entropy_grad: bool = False
    """Let gradients flow through the entropy."""
    values: bool = False
    """Fill `PolicyOutput.values` from the critic."""
    full_kl: FullKL | None = None
    """Fill `PolicyOutput.full_kl`."""


class PolicyOutput(NamedTuple):
    """The policy's forward pass on one batch, differentiable in its parameters; 0.0 on padding."""

    logps: Float[Tensor, "B C"]
    """Log-probability of each sampled token under the sampling temperature, nats, float32."""
    entropy: Float[Tensor, "B C"] | None = None
    """Entropy of the next-token distribution, nats."""
    values: Float[Tensor, "B C"] | None = None
    full_kl: Float[Tensor, "B C"] | None = None
    """Full-vocabulary KL of the direction asked for, nats."""


@runtime_checkable
class Idle(Protocol):
    """This function tells which rows have a loss of gradient exactly 0, whatever the outputs are.

    The trainer computes their outputs for the metrics, but no gradient. Example: rows without an
    advantage, where the loss is a multiple of it.

        def idle(batch: TrainBatch) -> Tensor:
            return (batch.advantages == 0.0).all(dim=1)
    """

    def __call__(self, batch: TrainBatch, /) -> Bool[Tensor, " B"]: ...


class LossOutput(NamedTuple):
    """A loss to minimise and its metrics; both add up over the micro-batches of a batch."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    """Detached scalars, already divided by the global denominators."""


@runtime_checkable
class Prepare(Protocol):
    """It turns a rollout batch into the batch to learn from: advantages, pairs, KL in the reward.

    It runs once per rollout batch, without gradients, and may drop or reorder rows.

    Example: REINFORCE, whose advantage is the reward itself.

        def prepare(rollout: RolloutBatch) -> TrainBatch:
            mask = rollout.completion_mask
            advantages = rollout.rewards.nan_to_num()[:, None].expand(mask.shape)
            return TrainBatch.prepared(rollout, loss_mask=mask, advantages=advantages)
    """

    def __call__(self, rollout: RolloutBatch, /) -> TrainBatch: ...


@runtime_checkable
class Loss(Protocol):
    """This function turns the policy's outputs on some rows of a batch into a loss to minimise.

    Its value is a sum over the rows at hand divided by `num_tokens` or `num_sequences` of the whole
    batch. So the losses of micro-batches add up. It masks with `loss_mask` before anything else,
    since padding may hold any number.

    Example: the policy gradient, averaged over all tokens of the batch.

        def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
            terms = (-batch.advantages * out.logps).masked_fill(~batch.loss_mask, 0.0)
            value = terms.sum() / batch.num_tokens
            return LossOutput(value, {"loss/policy": value.detach()})
    """

    def __call__(self, out: PolicyOutput, batch: TrainBatch, /) -> LossOutput: ...


class RolloutKind(StrEnum):
    """An algorithm learns from rollouts of one of these kinds."""

    sampled = "sampled"
    """The policy's own completions, with their rewards."""
    targets = "targets"
    """Completions that the task gives, one a prompt. Nothing is sampled or scored, the rewards are
    NaN and so are the sampler's logps."""


class Warmup(NamedTuple):
    """This is another loss for the first steps of a run, for example a critic's alone."""

    num_steps: int
    """Rollout batches at the start of the run that use it, >= 1."""
    loss: Loss
    outputs: OutputSpec


class Algorithm(NamedTuple):
    """A bundle of pure functions; hyperparameters are closed over by the factory that made it.

    Neither function has state, randomness or side effects.

    Example: `Algorithm(prepare=prepare, loss=loss)` with the functions that the docstrings of
    `Prepare` and `Loss` show is REINFORCE.
    """

    prepare: Prepare
    """Runs once per rollout batch."""
    loss: Loss
    """Runs once per micro-batch."""
    needs: frozenset[Column] = frozenset()
    """Columns of the rollout batch that the trainer fills before `prepare`."""
    outputs: OutputSpec = OutputSpec()
    """Outputs that the policy's forward pass computes for `loss`."""
    rows_per_unit: int = 1
    """Adjacent rows that must share a micro-batch: 2 for pairs (chosen, rejected, chosen, ...)."""
    critic_rate: float | None = None
    """Learning rate of the critic's parameters, > 0. None: the algorithm has no critic."""
    warmup: Warmup | None = None
    """The loss of the first steps, if it is another one."""
    idle: Idle | None = None
    """The rows that need no gradient. None: there are none."""
    rollouts: RolloutKind = RolloutKind.sampled
    """The completions of a rollout batch come from here."""

    def at(self, step: int) -> Algorithm:
        """Return the algorithm of the rollout batch number `step`, from 0 on: warm-up or itself."""
        if self.warmup is None or step >= self.warmup.num_steps:
            return self
        return self._replace(loss=self.warmup.loss, outputs=self.warmup.outputs, idle=None)


class Setting(NamedTuple):
    """Facts of the run that an algorithm's factory may depend on."""

    group_size: int
    """Completions sampled per prompt."""
    max_completion_length: int
    """The generation limit, tokens."""
    updates_per_batch: int
    """Optimiser updates on one rollout batch: inner epochs x minibatches. 1 = on-policy."""
    microbatched: bool = True
    """Whether the trainer may split an optimisation batch into several micro-batches."""
