"""Central types: what happened (`RolloutBatch`), what to learn from it (`TrainBatch`), who does it.

Dimensions: B sequences, P prompt tokens (left-padded), C completion tokens (right-padded), K reward
functions. Logps are natural-log probabilities in float32; masks are bool, True = keep. Immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class FinishReason(StrEnum):
    """Why sampling of a completion ended; the generator says it, token ids never do."""

    stop = "stop"
    length = "length"


class Column(StrEnum):
    """Columns of a `RolloutBatch` that the trainer fills only for algorithms that need them."""

    old_logps = "old_logps"
    ref_logps = "ref_logps"
    values = "values"


class KLDirection(StrEnum):
    """`reverse` is KL(policy || ref); `forward` is KL(ref || policy)."""

    none = "none"
    reverse = "reverse"
    forward = "forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt as the model sees it, with the columns of its row and a hash of what was asked.

    Example: `Prompt(index=3, ids=(1, 403, 28), text="Q: ...", columns={"answer": "12"})`.
    """

    index: int
    """Position in its split; with the run seed and the step it determines every sampling seed."""
    ids: tuple[int, ...]
    """Token ids, special tokens included; nothing downstream tokenises again."""
    text: str
    """The rendered prompt, for logs and rewards."""
    columns: Mapping[str, object] = field(default_factory=dict)
    """Further columns of the task's row, such as `answer`."""
    messages: tuple[Mapping[str, object], ...] = ()
    """The conversation of a chat, `role` and `content` of each turn; empty for plain text."""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a reward function sees of one sample."""

    prompt: Prompt
    text: str
    """Decoded completion without special tokens."""
    ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion as the generator returns it."""

    prompt: Prompt
    sample_index: int
    """Position in its group, 0 <= sample_index < group_size."""
    completion_ids: tuple[int, ...]
    """Sampled ids, the stop token included when there was one."""
    sampling_logps: tuple[float, ...]
    """Nats, under the sampling distribution; one per completion id."""
    finish_reason: FinishReason
    policy_version: int
    """Number of optimiser updates the sampling policy had seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its rewards: what the buffer holds."""

    rollout: Rollout
    text: str
    components: tuple[float, ...]
    """Raw value of each reward function, unweighted; NaN = not applicable or failed."""
    reward: float
    """Weighted sum of the components that are not NaN."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutBatch:
    """What happened: samples with rewards, no learning signal yet. Rows of a group are adjacent."""

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    completion_ids: Int[Tensor, "B C"]
    completion_mask: Bool[Tensor, "B C"]
    """True on sampled tokens, the stop token included."""
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

    def rows(self, index: Int[Tensor, " R"]) -> RolloutBatch:
        """The sub-batch of rows `index`, in that order."""
        return _take_rows(self, index)

    def to(self, device: torch.device) -> RolloutBatch:
        """The same batch on `device`."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in columns.items() if v is not None})

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainBatch:
    """A rollout batch with its learning signal and the GLOBAL denominators of its loss.

    Losses of any partition of the rows add up to the loss of the whole batch, because `num_tokens`
    and `num_sequences` describe the whole optimisation batch and `rows` keeps them.
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

    def rows(self, index: Int[Tensor, " R"]) -> TrainBatch:
        """The rows `index` of the same optimisation batch: denominators stay (micro-batch)."""
        return _take_rows(self, index)

    def minibatch(self, index: Int[Tensor, " R"]) -> TrainBatch:
        """The rows `index` as an optimisation batch of their own: denominators are counted anew."""
        return with_denominators(self.rows(index))

    def __len__(self) -> int:
        return len(self.rollout)


def with_denominators(batch: TrainBatch) -> TrainBatch:
    """`batch` with `num_tokens` and `num_sequences` counted from its `loss_mask` (at least 1)."""
    num_tokens, num_rows = int(batch.loss_mask.sum()), int(batch.loss_mask.any(dim=1).sum())
    return replace(batch, num_tokens=max(num_tokens, 1), num_sequences=max(num_rows, 1))


_Batch = TypeVar("_Batch", RolloutBatch, TrainBatch)


def _take_rows(batch: _Batch, index: Tensor) -> _Batch:
    """Row-index every tensor field whose first axis is the batch axis."""
    changes: dict[str, object] = {}
    for name, value in ((f.name, getattr(batch, f.name)) for f in fields(batch)):
        if isinstance(value, RolloutBatch):
            changes[name] = value.rows(index)
        elif isinstance(value, Tensor) and name != "reward_weights":
            changes[name] = value[index]
    return replace(batch, **changes)  # type: ignore[arg-type]  # names come from fields(batch)


class FullKL(NamedTuple):
    """Which full-vocabulary KL divergence a loss wants from the policy's forward pass."""

    direction: KLDirection
    top_k: int | None = None
    """None: every word; else the reference's `top_k` likeliest words and a bucket for the rest."""


class OutputSpec(NamedTuple):
    """What a loss needs beyond the logps of the sampled tokens; each item costs forward work."""

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


class LossOutput(NamedTuple):
    """A loss to minimise and its metrics; both add up over the micro-batches of a batch."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    """Detached scalars, already divided by the global denominators."""


class Algorithm(NamedTuple):
    """A bundle of pure functions; hyperparameters are closed over by the factory that made it.

    `prepare` runs once per rollout batch, without gradients: advantages, pairs, KL in the reward.
    `loss` sees one micro-batch. Neither has state, randomness or side effects.
    """

    prepare: Callable[[RolloutBatch], TrainBatch]
    loss: Callable[[PolicyOutput, TrainBatch], LossOutput]
    needs: frozenset[Column] = frozenset()
    outputs: OutputSpec = OutputSpec()
    rows_per_unit: int = 1
    """Adjacent rows that must share a micro-batch: 2 for pairs (chosen, rejected, chosen, ...)."""


class Setting(NamedTuple):
    """Facts of the run that an algorithm's factory may depend on."""

    group_size: int
    max_completion_length: int
    updates_per_batch: int
    """Optimiser updates on one rollout batch: inner epochs x minibatches. 1 = on-policy."""
    microbatched: bool = True
    """Whether the trainer may split an optimisation batch into several micro-batches."""


class RewardFn(Protocol):
    """One prompt's completions in, a finite number (or None: not applicable) for each out. Pure."""

    def __call__(self, group: Sequence[Completion]) -> Sequence[float | None]: ...


class SamplingConfig(NamedTuple):
    """The distribution that completions are sampled from, and where sampling ends."""

    max_completion_length: int
    temperature: float = 1.0
    """> 0; divides the logits."""
    top_p: float = 1.0
    """In (0, 1]; 1 = off."""
    top_k: int = 0
    """>= 0; 0 = off."""
    min_p: float = 0.0
    """In [0, 1); 0 = off."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion when they appear in its text; they stay part of it."""


class Generator(Protocol):
    """Samples completions: token ids in, token ids and sampling logps out."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """`num_samples` rollouts of each prompt: [prompt][sample], seeded by `seeds`, likewise."""

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample with this adapter from now on; `version` tags the rollouts."""

    def close(self) -> None:
        """Free what the generator holds; idempotent, at most 30 s."""
