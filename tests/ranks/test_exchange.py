"""Samples arrive on other ranks as they were, bit for bit."""

from __future__ import annotations

import math

import pytest
from rank_processes import run_ranks
from rank_runs import uneven

from rlkit.ranks import ALONE
from rlkit.training.exchange import decode, encode
from rlkit.training.scoring import ScoringNumbers
from rlkit.types import (
    Episode,
    EpisodeEnd,
    FinishReason,
    Prompt,
    Rollout,
    ScoredRollout,
    TurnRecord,
)

PROMPTS = [Prompt(index=i, ids=(i, 7), text=f"p{i}") for i in range(3)]


def sample(place: int, index: int, *, reward: float) -> ScoredRollout:
    """A sample with values that JSON or 32 bits would change."""
    return ScoredRollout(
        rollout=Rollout(
            prompt=PROMPTS[place],
            sample_index=index,
            completion_ids=(5, 2**31 + index, 0),
            sampling_logps=(-0.1 / 3, -1e-300, -0.0),
            finish_reason=FinishReason.length,
            policy_version=3,
        ),
        text='line\nof "text" \ud83d\ud83d',
        components=(math.nan, 1 / 3),
        reward=reward,
    )


def test_groups_and_numbers_arrive_as_they_were() -> None:
    groups = [(sample(2, 0, reward=0.1), sample(2, 1, reward=-1e300)), (sample(0, 0, reward=0.2),)]
    numbers = ScoringNumbers({"failures": 2.0, "seconds": 0.1 + 0.2}, {"share": (1.0, 3.0)})
    found, again = decode(encode([2, 0], groups, numbers), PROMPTS)
    assert again == numbers
    assert list(found) == [2, 0]
    assert repr([found[2], found[0]]) == repr(groups)  # repr: NaN is not equal to itself
    assert math.copysign(1.0, found[0][0].rollout.sampling_logps[2]) == -1.0


def test_the_turns_of_an_episode_arrive() -> None:
    turns = (
        TurnRecord(start=0, stop=1, reward=0.25, info={"calls": 2.0}),
        TurnRecord(start=2, stop=3, reward=None, text="b"),
    )
    plain = sample(1, 0, reward=0.25)
    rollout = Rollout(
        prompt=PROMPTS[1],
        sample_index=0,
        completion_ids=plain.rollout.completion_ids,
        sampling_logps=plain.rollout.sampling_logps,
        finish_reason=FinishReason.stop,
        policy_version=0,
        episode=Episode(turns=turns, end=EpisodeEnd.turns),
    )
    scored = ScoredRollout(
        rollout=rollout,
        text="",
        components=(0.25,),
        reward=0.25,
        turn_rewards=(0.25, 0.0),
        passages=("a", "env", "b"),
    )
    message = encode([1], [(scored,)], ScoringNumbers({}, {}))
    assert decode(message, PROMPTS)[0][1] == (scored,)


def test_a_rank_without_prompts_says_so() -> None:
    assert decode(encode([], [], ScoringNumbers({}, {})), PROMPTS) == ({}, ScoringNumbers({}, {}))


@pytest.mark.parametrize("how", ["calls", "refills"])
def test_a_rank_that_runs_dry_takes_the_next_prompts_and_changes_none(how: str) -> None:
    alone, both = uneven(ALONE), run_ranks("rank_runs:uneven", 2, how)
    for rank in both:
        for name in ("tokens", "prompts", "rewards", "sampled"):
            assert rank[name] == alone[name], name
    assert alone["prompts"] == sorted(alone["prompts"]) and len(alone["tokens"]) == 48
    # The first takes ten or so of the twelve while the second waits for its reward.
    assert both[0]["seen"] + both[1]["seen"] == 12
    assert both[0]["seen"] > both[1]["seen"] >= 1
    assert [rank["calls"] for rank in both] == ([1, 1] if how == "refills" else [0, 0])
