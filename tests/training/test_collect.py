"""Prompts that come again within a step: other samples each time, and a group of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import CPU, PAD, LetterReward, LetterScores, letter_prompts, tiny_run

from rlkit.generation import sample_seed
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collector
from rlkit.types import Completion, Prompt, SamplingConfig


class SameReward(LetterReward):
    """No group has a signal."""

    def score(self, groups: list[list[Completion]]) -> LetterScores:  # type: ignore[override]
        return LetterScores(
            [[[1.0] for _ in g] for g in groups], [[1.0 for _ in g] for g in groups]
        )


def collector(folder: Path, prompts: list[Prompt], **options: object) -> Collector:
    """That of a tiny run, over the same prompts in every step and attempt."""
    whole = tiny_run(folder)[0].collector
    assert isinstance(whole, Collector)

    def source(*, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        return prompts

    # Hot, as the tiny model is sharp: its own 16 samples could be equal by chance.
    sampling = SamplingConfig(max_completion_length=6, temperature=50.0)
    return replace(whole, prompts=source, sampling=sampling, **options)  # type: ignore[arg-type]


def completions(collector: Collector, *, step: int = 0) -> list[list[tuple[int, ...]]]:
    groups = collector.collect(step, policy_version=0, clock=StepClock(CPU)).groups
    return [[sample.rollout.completion_ids for sample in group] for group in groups]


def test_one_prompt_four_times_gives_sixteen_samples_in_four_groups(tmp_path: Path) -> None:
    (first, *_) = letter_prompts(step=0, attempt=0)
    repeated = collector(tmp_path, [first] * 4)
    groups = completions(repeated)
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    # Six tokens of nearly 28 letters each: two of 16 are equal once in a million.
    assert len({ids for group in groups for ids in group}) == 16
    # The first time is what a step without repetition samples: old runs go on bitwise.
    assert completions(collector(tmp_path, [first]))[0] == groups[0]
    assert completions(repeated) == groups
    found = repeated.collect(0, policy_version=0, clock=StepClock(CPU)).groups
    batch = collate(found, reward_weights=(1.0,), pad_token_id=PAD, device=CPU)
    assert batch.group_ids.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_resampling_a_small_set_never_copies(tmp_path: Path) -> None:
    """Three prompts, four attempts of four samples each: 48 samples with different seeds."""
    seen: list[int] = []

    def seed(step: int, prompt: int, sample: int, occurrence: int) -> int:
        seen.append(sample_seed(0, step, prompt, sample, occurrence))
        return seen[-1]

    prompts = letter_prompts(step=0, attempt=0)
    collector(tmp_path, prompts, rewards=SameReward(), resample=True, seed=seed).collect(
        0, policy_version=0, clock=StepClock(CPU)
    )
    assert len(seen) == len(set(seen)) == 48


class SomeReward(LetterReward):
    """Only groups of odd prompts have a signal."""

    def score(self, groups: list[list[Completion]]) -> LetterScores:  # type: ignore[override]
        rewards = [[float(n * (g[0].prompt.index % 2)) for n in range(len(g))] for g in groups]
        return LetterScores([[[r] for r in some] for some in rewards], rewards)


@pytest.mark.parametrize("rounds", [2, 3, 16])
def test_rounds_at_once_change_no_group(tmp_path: Path, rounds: int) -> None:
    """Half of the groups are replaced, so that the second round is needed and the third is not."""
    seen: list[str] = []

    def source(*, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        return letter_prompts(step=step, attempt=attempt)

    def is_right(completion: Completion) -> tuple[str, bool]:
        seen.append(completion.text)
        return "letters", completion.prompt.index % 2 == 1

    some = collector(tmp_path, [], rewards=SomeReward(), resample=True)
    whole = replace(some, prompts=source, is_right=is_right)

    def collected(at_once: int) -> tuple[list[list[tuple[int, ...]]], dict[str, float], list[str]]:
        seen.clear()
        one = replace(whole, rounds_at_once=at_once)
        found = one.collect(3, policy_version=0, clock=StepClock(CPU))
        ids = [[sample.rollout.completion_ids for sample in group] for group in found.groups]
        return ids, found.counts, list(seen)

    groups, counts, judged = collected(1)
    assert len(groups) == 3 and 12 < counts["rollouts/sampled"] < 48, "it stops before the last"
    others, further, judged_again = collected(rounds)
    assert (others, judged_again) == (groups, judged)
    unused = further.pop("rollouts/unused")
    assert further == counts
    per_round = 12
    used = counts["rollouts/sampled"] / per_round
    asked = min(4, -(-used // rounds) * rounds)
    assert unused == (asked - used) * per_round


@pytest.mark.parametrize("step", [0, 7])
def test_occurrences_count_by_prompt_not_by_place(tmp_path: Path, step: int) -> None:
    a, b, c = letter_prompts(step=0, attempt=0)
    mixed = completions(collector(tmp_path, [a, b, a, c, b, a]), step=step)
    assert mixed[:2] + mixed[3:4] == completions(collector(tmp_path, [a, b, c]), step=step)
    again = completions(
        collector(
            tmp_path,
            [a],
            seed=lambda step, prompt, sample, _: sample_seed(0, step, prompt, sample, 2),
        ),
        step=step,
    )
    assert again[0] == mixed[5]


def test_rollouts_of_an_older_policy_are_refused(tmp_path: Path) -> None:
    """A learner at version 1 must not learn from samples of version 0."""
    one = collector(tmp_path, letter_prompts(step=0, attempt=0))
    with pytest.raises(RuntimeError, match="must come from policy version 1, got version 0"):
        one.collect(0, policy_version=1, clock=StepClock(CPU))
