"""These types follow a sample from prompt to score, with its generator and its reward function."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class FinishReason(StrEnum):
    """The reason why sampling of a completion ended; the generator says it, token ids never do."""

    stop = "stop"
    length = "length"


class EpisodeEnd(StrEnum):
    """The reason why an episode of several turns ended."""

    done = "done"
    """The environment said so."""
    length = "length"
    """A turn met its limit of tokens; what was cut short is not given to the environment."""
    context = "context"
    """No token was left for another turn."""
    turns = "turns"
    """The last turn that is allowed was over."""
    seconds = "seconds"
    """The environment had used up the seconds of its episode."""
    failed = "failed"
    """The environment raised, hung or crashed: the episode has no reward."""


class TurnRecord(NamedTuple):
    """One turn of an episode: what was sampled, and what the environment said to it."""

    start: int
    """Place of its first sampled token in the completion."""
    stop: int
    """Place behind its last sampled token."""
    reward: float | None = None
    """The environment's, for this turn alone; None = it gave none."""
    info: Mapping[str, float] = MappingProxyType({})
    """The environment's numbers about this turn, such as calls of tools and their errors."""
    text: str = ""
    """Decoded sampled text; filled where a reward function looks."""
    afresh: bool = False
    """Whether the ids between the turn before and this one are all that the model read, prompt
    included: the chat template had rewritten the past. False = they follow what it read before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The turns of a rollout; tokens of the completion outside them came from the environment."""

    turns: tuple[TurnRecord, ...]
    """In order, at least one."""
    end: EpisodeEnd

    @property
    def reward(self) -> float:
        """Return the sum of the turns' rewards, 0 without any; NaN when the environment failed."""
        if self.end is EpisodeEnd.failed:
            return math.nan
        return math.fsum(turn.reward for turn in self.turns if turn.reward is not None)


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
    limit: int | None = None
    """Most tokens of a completion where they are fewer than the run's, >= 1: what a row has left
    for another turn. None = the run's."""

    def most_tokens(self, longest: int) -> int:
        """Return the limit of a completion in a run that allows `longest` tokens."""
        return longest if self.limit is None else min(longest, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample as a reward function sees it."""

    prompt: Prompt
    text: str
    """Decoded completion without special tokens; of an episode, its last turn."""
    ids: tuple[int, ...]
    """The sampled ids that `text` is made of."""
    finish_reason: FinishReason
    episode: Episode | None = None
    """The turns, if an environment took part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion as the generator returns it."""

    prompt: Prompt
    sample_index: int
    """Position in its group, 0 <= sample_index < group_size."""
    completion_ids: tuple[int, ...]
    """Sampled ids, the stop token included when there was one. Of an episode, all ids after the
    prompt: `episode` says which of them were sampled."""
    sampling_logps: tuple[float, ...]
    """Nats, under the sampling distribution; one per completion id, 0.0 where none was sampled."""
    finish_reason: FinishReason
    policy_version: int
    """Number of optimiser updates the sampling policy had seen."""
    episode: Episode | None = None
    """The turns, if an environment took part; None = everything was sampled in one go."""
    drafted: int = 0
    """Tokens that were guessed before they were sampled (generator.speculation)."""
    accepted: int = 0
    """Those of them that were right, each of which saved the model a pass."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return (start, stop) of each run of sampled ids, one a turn."""
        if self.episode is None:
            return ((0, len(self.completion_ids)),)
        return tuple((turn.start, turn.stop) for turn in self.episode.turns)

    @property
    def num_sampled(self) -> int:
        """Return the number of sampled ids."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its rewards: what the buffer holds."""

    rollout: Rollout
    text: str
    components: tuple[float, ...]
    """Raw value of each reward function, unweighted; NaN = not applicable or failed."""
    reward: float
    """Weighted sum of the components that are not NaN."""
    turn_rewards: tuple[float, ...] = ()
    """The part of each turn in `reward`, of an episode; they add up to it."""
    passages: tuple[str, ...] = ()
    """Decoded text of an episode: a turn, what the environment said, a turn, and so on."""


Group = tuple[ScoredRollout, ...]
"""All scored samples of one prompt; never split."""


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


class GeneratorDied(RuntimeError):
    """The engine of a generator broke while it sampled; another one may do better."""


class PromptRequest(NamedTuple):
    """One prompt to sample, and the seed of each of its samples."""

    prompt: Prompt
    seeds: Sequence[int]


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
        """Sample completions; the result is `[prompt][sample]`.

        Args:
            prompts: the prompts, as token ids.
            num_samples: completions of each prompt, >= 1.
            sampling: the distribution to sample from.
            seeds: a seed for each completion, `[prompt][sample]`.

        Raises:
            GeneratorDied: the engine broke.
        """

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample with this adapter from now on; `version` tags the rollouts."""

    def close(self) -> None:
        """Free what the generator holds; idempotent, at most 30 s."""


@runtime_checkable
class RefillingGenerator(Generator, Protocol):
    """A generator that takes the next prompt as soon as it has room, beside those under way."""

    def prompts_at_once(self, num_samples: int) -> int:
        """Return the prompts of `num_samples` samples each that fill it; 0 = it takes them all."""

    def generate_from(
        self, requests: Iterator[PromptRequest], *, num_samples: int, sampling: SamplingConfig
    ) -> list[list[Rollout]]:
        """Sample the requests that it takes until there are none; the result is `[taken][sample]`.

        Args:
            requests: the next request is taken when there is room for it, not before.
            num_samples: completions of each prompt, >= 1.
            sampling: the distribution to sample from.

        Raises:
            GeneratorDied: the engine broke.
        """
