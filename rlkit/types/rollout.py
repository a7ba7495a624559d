"""These types follow a sample from prompt to score, with its generator and its reward function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class FinishReason(StrEnum):
    """The reason why sampling of a completion ended; the generator says it, token ids never do."""

    stop = "stop"
    length = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt as the model sees it, with the task's columns for the rewards.

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
    """Hash of what was asked, equal for equal questions under any template; empty = unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample as a reward function sees it."""

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
    """A generator samples completions: token ids in, token ids and sampling logps out."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample completions; the result is [prompt][sample].

        Args:
            prompts: the prompts, as token ids.
            num_samples: completions of each prompt, >= 1.
            sampling: the distribution to sample from.
            seeds: a seed for each completion, [prompt][sample].
        """

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample with this adapter from now on; `version` tags the rollouts."""

    def close(self) -> None:
        """Free what the generator holds; idempotent, at most 30 s."""
