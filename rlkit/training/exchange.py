"""Samples travel between ranks: what one rank sampled and scored reaches the others.

What crosses is numbers and text, no pickle. The prompts stay at home: every rank has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlkit.training.scoring import ScoringNumbers
from rlkit.types import (
    Episode,
    EpisodeEnd,
    FinishReason,
    Group,
    Prompt,
    Rollout,
    ScoredRollout,
    TurnRecord,
)

Sampled = tuple[list[Group], ScoringNumbers]
"""Scored groups, and numbers about their scoring that add up over the ranks."""


def encode(places: Sequence[int], groups: Sequence[Group], numbers: ScoringNumbers) -> bytes:
    """Return one message that holds the groups of the prompts at `places`.

    It is a line of JSON with all that is short, then token ids (int64), logps and rewards (both
    float64). A sample has one reward and after it the components. Floats cross bit by bit.
    """
    rows = [sample for group in groups for sample in group]
    head = {
        "places": list(places),
        "sizes": [len(group) for group in groups],
        "counts": dict(numbers.counts),
        "shares": dict(numbers.shares),
        "components": len(rows[0].components) if rows else 0,
        "samples": [
            [
                *(row.rollout.sample_index, len(row.rollout.completion_ids)),
                *(row.rollout.finish_reason.value, row.rollout.policy_version, row.text),
                *(row.turn_rewards, row.passages, _of_episode(row.rollout.episode)),
                *(row.rollout.drafted, row.rollout.accepted),
            ]
            for row in rows
        ],
    }
    ids = [i for row in rows for i in row.rollout.completion_ids]
    logps = [x for row in rows for x in row.rollout.sampling_logps]
    rewards = [x for row in rows for x in (row.reward, *row.components)]
    return b"".join(
        (
            json.dumps(head).encode() + b"\n",
            np.array(ids, dtype=np.int64).tobytes(),
            np.array(logps, dtype=np.float64).tobytes(),
            np.array(rewards, dtype=np.float64).tobytes(),
        )
    )


def decode(message: bytes, prompts: Sequence[Prompt]) -> tuple[dict[int, Group], ScoringNumbers]:
    """Return the groups of a message by the place of their prompt in `prompts`, and its numbers."""
    line, _, body = message.partition(b"\n")
    head = json.loads(line)
    lengths = [sample[1] for sample in head["samples"]]
    width = 1 + head["components"]
    take = _Reader(body)
    ids = take("int64", sum(lengths)).tolist()
    logps = take("float64", sum(lengths)).tolist()
    rewards = take("float64", width * len(lengths)).reshape(-1, width).tolist()
    samples, start, number = iter(head["samples"]), 0, 0
    groups: dict[int, Group] = {}
    for place, size in zip(head["places"], head["sizes"], strict=True):
        group = []
        for index, length, reason, version, text, *more in (next(samples) for _ in range(size)):
            turn_rewards, passages, episode, drafted, accepted = more
            reward, *components = rewards[number]
            rollout = Rollout(
                prompt=prompts[place],
                sample_index=index,
                completion_ids=tuple(ids[start : start + length]),
                sampling_logps=tuple(logps[start : start + length]),
                finish_reason=FinishReason(reason),
                policy_version=version,
                episode=_to_episode(episode),
                drafted=drafted,
                accepted=accepted,
            )
            scored = ScoredRollout(
                rollout=rollout,
                text=text,
                components=tuple(components),
                reward=reward,
                turn_rewards=tuple(turn_rewards),
                passages=tuple(passages),
            )
            group.append(scored)
            start, number = start + length, number + 1
        groups[place] = tuple(group)
    shares = {name: (above, below) for name, (above, below) in head["shares"].items()}
    return groups, ScoringNumbers(head["counts"], shares)


def _of_episode(episode: Episode | None) -> list[object] | None:
    """Return what JSON holds of the turns of an episode."""
    if episode is None:
        return None
    return [
        [turn._asdict() | {"info": dict(turn.info)} for turn in episode.turns],
        episode.end.value,
    ]


def _to_episode(found: Sequence[Any] | None) -> Episode | None:
    if found is None:
        return None
    turns, end = found
    return Episode(turns=tuple(TurnRecord(**turn) for turn in turns), end=EpisodeEnd(end))


class _Reader:
    """This object reads arrays from the front of a message."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    def __call__(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """Return the next `count` numbers."""
        taken: npt.NDArray[Any] = np.frombuffer(self._body, dtype=dtype, count=count)
        self._body = self._body[taken.nbytes :]
        return taken
