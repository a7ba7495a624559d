"""This module holds an episode while it is played, and what becomes of it turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlkit.environments.branch import Shown
from rlkit.types import Episode, EpisodeEnd, FinishReason, Prompt, Rollout, TurnRecord


@dataclass(slots=True, kw_only=True)
class LiveEpisode:
    """An episode while it is played."""

    prompt: Prompt
    sample_index: int
    seed: int
    state: str | None
    """None when the environment could not begin."""
    seconds: float
    shown: Shown | None = None
    """It holds what the model has read as text; None = its ids only grow."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    context_start: int | None = None
    """Place in `ids` from which on the model reads; None = the prompt and all of them."""
    policy_version: int = 0
    drafted: int = 0
    accepted: int = 0
    end: EpisodeEnd | None = None

    @property
    def context(self) -> tuple[int, ...]:
        """Return the ids that the model reads before its next turn."""
        if self.context_start is None:
            return (*self.prompt.ids, *self.ids)
        return tuple(self.ids[self.context_start :])

    def take(self, rollout: Rollout, *, cut_at: int | None) -> None:
        """Append a turn as it was sampled; one of `cut_at` tokens counts as complete."""
        if self.turns and rollout.policy_version != self.policy_version:
            raise RuntimeError(
                f"an episode must have one policy, got versions {self.policy_version} and "
                f"{rollout.policy_version}"
            )
        start = len(self.ids)
        before = self.turns[-1].stop if self.turns else 0
        self.ids += rollout.completion_ids
        self.logps += rollout.sampling_logps
        afresh = self.context_start is not None and self.context_start == before
        self.turns.append(TurnRecord(start, len(self.ids), afresh=afresh))
        self.policy_version = rollout.policy_version
        self.drafted += rollout.drafted
        self.accepted += rollout.accepted
        if self.state is None:
            self.end = EpisodeEnd.failed
        elif rollout.finish_reason is FinishReason.length and cut_at != rollout.num_sampled:
            self.end = EpisodeEnd.length

    def splice(self, ids: Sequence[int], *, afresh: bool) -> None:
        """Append what nobody sampled: what follows the last turn, or a context of its own."""
        if afresh:
            self.context_start = len(self.ids)
        self.ids += ids
        self.logps += [0.0] * len(ids)

    def rollout(self) -> Rollout:
        """Return the finished episode."""
        assert self.end is not None
        done = self.end is EpisodeEnd.done
        return Rollout(
            prompt=self.prompt,
            sample_index=self.sample_index,
            completion_ids=tuple(self.ids),
            sampling_logps=tuple(self.logps),
            finish_reason=FinishReason.stop if done else FinishReason.length,
            policy_version=self.policy_version,
            episode=Episode(turns=tuple(self.turns), end=self.end),
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def next_prompt(self, *, limit: int) -> Prompt:
        """Return the prompt of the next turn, which may have `limit` tokens."""
        return replace(self.prompt, ids=self.context, limit=limit)
