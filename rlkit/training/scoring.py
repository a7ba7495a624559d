"""Decode and score groups of rollouts with the configured reward functions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, Protocol

from rlkit.types import (
    Completion,
    Group,
    Rollout,
    ScoredRollout,
)

_log = logging.getLogger(__name__)

ENVIRONMENT = "environment"
"""The reward function that passes on what an environment paid, turn by turn."""
Decode = Callable[[Sequence[int]], str]
"""Token ids to text without special tokens."""


class RewardScores(Protocol):
    """The reward functions' answers about a list of groups."""

    @property
    def components(self) -> Sequence[Sequence[Sequence[float]]]:
        """Return raw values, [group][sample][function]; NaN = not applicable or failed."""
        ...

    @property
    def rewards(self) -> Sequence[Sequence[float]]:
        """Return weighted sums over the values that are not NaN; NaN when there is none."""
        ...

    @property
    def failures(self) -> Mapping[str, int]:
        """Count samples without a value, by `function/kind` of the failure."""
        ...

    def describe(self) -> Sequence[str]:
        """Return one line for each kind of failure."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return numbers about the scoring itself, which add up over the batches of a step."""
        ...

    def shares(self) -> Mapping[str, tuple[float, float]]:
        """Return (numerator, denominator) of means, of which both add up over the batches."""
        ...


class Rewards(Protocol):
    """These are the configured reward functions."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def weights(self) -> Sequence[float]: ...

    def score(self, groups: Sequence[Sequence[Completion]]) -> RewardScores: ...


class ScoringNumbers(NamedTuple):
    """These are numbers about the scoring of one batch."""

    counts: Mapping[str, float]
    """Failures by kind, seconds by function: they add up."""
    shares: Mapping[str, tuple[float, float]]
    """(numerator, denominator) of means."""


def who_gave_no_reward(
    groups: Sequence[Group], rewards: Rewards, failed: Mapping[str, float]
) -> str:
    """Return which function left a whole batch without rewards, and how, in a few words.

    Args:
        groups: Samples that have no reward.
        rewards: The reward functions.
        failed: Samples of the batch that failed, by `function/kind`.
    """
    samples = [sample for group in groups for sample in group]
    found = []
    for k, (name, weight) in enumerate(zip(rewards.names, rewards.weights, strict=True)):
        kinds = [key.partition("/")[2] for key in failed if key.partition("/")[0] == name]
        silent = all(math.isnan(sample.components[k]) for sample in samples)
        if weight and (kinds or silent):
            how = " and ".join(kinds) if kinds else "None for every sample"
            found.append(f"reward.functions.{name} ({how})")
    return ", ".join(found)


def score_rollouts(
    rollouts: Sequence[Sequence[Rollout]], rewards: Rewards, decode: Decode
) -> tuple[list[Group], ScoringNumbers]:
    """Decode and score groups of rollouts; a sample without any reward has reward NaN."""
    completions = [[completion_of(r, decode) for r in group] for group in rollouts]
    scores = rewards.score(completions)
    for line in scores.describe():
        _log.warning(line)
    groups = [
        tuple(
            _scored(r, c, tuple(parts), reward, rewards, decode)
            for r, c, parts, reward in zip(*group, strict=True)
        )
        for group in zip(rollouts, completions, scores.components, scores.rewards, strict=True)
    ]
    failures = {f"rewards/failures/{kind}": float(n) for kind, n in scores.failures.items()}
    return groups, ScoringNumbers({**scores.metrics(), **failures}, scores.shares())


def _scored(
    rollout: Rollout,
    completion: Completion,
    components: tuple[float, ...],
    reward: float,
    rewards: Rewards,
    decode: Decode,
) -> ScoredRollout:
    scored = ScoredRollout(
        rollout=rollout, text=completion.text, components=components, reward=reward
    )
    if rollout.episode is None:
        return scored
    edges = [place for span in rollout.spans for place in span]
    passages = tuple(decode(rollout.completion_ids[a:b]) for a, b in pairwise(edges))
    # Every second passage is the environment's.
    shown = [f"» {' '.join(p.split())}" if i % 2 else p.strip() for i, p in enumerate(passages)]
    return replace(
        scored,
        text="\n".join(shown),
        turn_rewards=_turn_rewards(rollout, reward, rewards),
        passages=passages,
    )


def _turn_rewards(rollout: Rollout, reward: float, rewards: Rewards) -> tuple[float, ...]:
    """Split a sample's reward: an environment pays turn by turn, all others at the end."""
    assert rollout.episode is not None
    weights = dict(zip(rewards.names, rewards.weights, strict=True))
    weight = weights.get(ENVIRONMENT, 0.0)
    paid = [weight * (turn.reward or 0.0) for turn in rollout.episode.turns]
    return (*paid[:-1], reward - math.fsum(paid[:-1]))


def completion_of(rollout: Rollout, decode: Decode) -> Completion:
    """Return what a reward function sees of a rollout: of an episode, what was said last."""
    texts = [decode(rollout.completion_ids[start:stop]) for start, stop in rollout.spans]
    start, stop = rollout.spans[-1]
    episode = rollout.episode
    if episode is not None:
        turns = zip(episode.turns, texts, strict=True)
        episode = replace(episode, turns=tuple(t._replace(text=text) for t, text in turns))
    return Completion(
        prompt=rollout.prompt,
        text=texts[-1],
        ids=rollout.completion_ids[start:stop],
        finish_reason=rollout.finish_reason,
        episode=episode,
    )
