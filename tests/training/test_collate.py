from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkit.training.collate import collate
from rlkit.types import (
    Episode,
    EpisodeEnd,
    FinishReason,
    Prompt,
    Rollout,
    RolloutBatch,
    ScoredRollout,
    TurnRecord,
)


def scored(
    prompt: tuple[int, ...],
    completion: tuple[int, ...],
    *,
    reward: float = 1.0,
    components: tuple[float, ...] = (1.0,),
    finish: FinishReason = FinishReason.stop,
    version: int = 0,
    logps: tuple[float, ...] | None = None,
) -> ScoredRollout:
    values = tuple(-0.5 * (i + 1) for i in range(len(completion))) if logps is None else logps
    rollout = Rollout(
        prompt=Prompt(index=0, ids=prompt, text=""),
        sample_index=0,
        completion_ids=completion,
        sampling_logps=values,
        finish_reason=finish,
        policy_version=version,
    )
    return ScoredRollout(rollout=rollout, text="", components=components, reward=reward)


def batch_of(*groups: list[ScoredRollout]) -> RolloutBatch:
    return collate(groups, reward_weights=[1.0], pad_token_id=9, device=torch.device("cpu"))


def test_pads_prompts_left_and_completions_right() -> None:
    first = scored((1, 2, 3), (4,), finish=FinishReason.length, version=3)
    second = scored((5,), (6, 7), reward=-2.0)
    batch = batch_of([first, second])
    assert batch.prompt_ids.tolist() == [[1, 2, 3], [9, 9, 5]]
    assert batch.prompt_mask.tolist() == [[True, True, True], [False, False, True]]
    assert batch.completion_ids.tolist() == [[4, 9], [6, 7]]
    assert batch.completion_mask.tolist() == [[True, False], [True, True]]
    assert batch.sampling_logps.tolist() == [[-0.5, 0.0], [-0.5, -1.0]]
    assert batch.rewards.tolist() == [1.0, -2.0]
    assert batch.truncated.tolist() == [True, False]
    assert batch.policy_version.tolist() == [3, 0]


def test_a_token_equal_to_the_padding_token_is_kept() -> None:
    batch = batch_of([scored((9,), (9, 9)), scored((1,), (2, 3, 9))])
    assert batch.completion_mask.sum(1).tolist() == [2, 3]


def test_groups_are_numbered_in_row_order() -> None:
    batch = batch_of([scored((1,), (2,))] * 2, [scored((3,), (4,))])
    assert batch.group_ids.tolist() == [0, 0, 1]


def test_rows_keep_every_column_aligned() -> None:
    batch = batch_of([scored((i,), (i, i + 1), reward=float(i)) for i in range(1, 5)])
    part = batch.rows(torch.tensor([2, 0]))
    assert part.prompt_ids.tolist() == [[3], [1]]
    assert part.completion_ids.tolist() == [[3, 4], [1, 2]]
    assert part.rewards.tolist() == [3.0, 1.0]
    assert part.reward_weights.tolist() == [1.0]


def test_an_empty_completion_has_no_mask() -> None:
    batch = batch_of([scored((1,), ()), scored((1,), (2,))])
    assert batch.completion_mask.tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (scored((1,), (2,), logps=()), "one sampling logp per completion token"),
        (scored((1,), (2,), reward=float("nan")), "the reward must be finite, got nan"),
        (scored((1,), (2,), components=(1.0, 2.0)), "1 rewards expected, got 2"),
    ],
)
def test_refuses_what_cannot_be_trained_on(sample: ScoredRollout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of([sample])


def episode(
    *turns: TurnRecord, length: int, reward: float, parts: tuple[float, ...] = ()
) -> ScoredRollout:
    """Ids 10, 11, ... of which the turns were sampled."""
    one = scored((1, 2), tuple(range(10, 10 + length)), reward=reward)
    rollout = replace(one.rollout, episode=Episode(turns=turns, end=EpisodeEnd.done))
    return replace(one, rollout=rollout, turn_rewards=parts)


def test_turns_are_sampled_and_what_is_between_them_only_exists() -> None:
    first = episode(TurnRecord(0, 2), TurnRecord(4, 5), length=5, reward=1.5, parts=(0.5, 1.0))
    second = episode(TurnRecord(0, 3), length=3, reward=2.0)
    batch = batch_of([first, second])
    assert batch.completion_ids.tolist() == [[10, 11, 12, 13, 14], [10, 11, 12, 9, 9]]
    assert batch.completion_mask.int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 0, 0]]
    assert batch.exists.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.spliced is not None and batch.turn_ids is not None
    assert batch.spliced.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert batch.turn_ids.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert batch.turn_rewards is not None
    # At the last sampled token of each turn; an episode without parts has it all at its end.
    assert batch.turn_rewards.tolist() == [[0.0, 0.5, 0.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0, 0.0]]
    assert torch.equal(batch.turn_rewards.sum(dim=1), batch.rewards)
    assert batch.sampling_logps.tolist()[0] == [-0.5, -1.0, 0.0, 0.0, -2.5]
    part = batch.rows(torch.tensor([1]))
    assert part.exists.tolist() == batch.exists[1:].tolist()


def test_a_batch_of_single_turns_has_no_column_of_turns() -> None:
    batch = batch_of([scored((1,), (2, 3))])
    assert batch.spliced is batch.turn_ids is batch.turn_rewards is None
    assert batch.exists is batch.completion_mask


@pytest.mark.parametrize(
    "turns",
    [
        (TurnRecord(0, 2), TurnRecord(1, 3)),
        (TurnRecord(0, 0),),
        (TurnRecord(2, 3), TurnRecord(0, 1)),
        (TurnRecord(0, 4),),
    ],
)
def test_turns_that_overlap_or_hold_nothing_are_refused(turns: tuple[TurnRecord, ...]) -> None:
    with pytest.raises(ValueError, match="turns must follow each other"):
        batch_of([episode(*turns, length=3, reward=0.0)])
