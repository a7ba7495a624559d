"""Warnings are right, said once, counted, and name the rewards that cancel."""

from __future__ import annotations

import math

from rlkit.tracking import SampleRow, StepRecord
from rlkit.tracking.health import Health

NAMES = ("right", "short", "tag")
Group = list[tuple[float, float, float]]


def record(step: int, groups: list[Group], *, finish: str = "stop") -> StepRecord:
    rows = [
        SampleRow(
            step=step,
            prompt_index=prompt,
            sample_index=i,
            prompt="p",
            completion="c",
            finish_reason=finish,
            num_tokens=1,
            components=components,
            reward=sum(c for c in components if not math.isnan(c)),
        )
        for prompt, group in enumerate(groups)
        for i, components in enumerate(group)
    ]
    return StepRecord(step=step, metrics={"grad_norm": 0.5}, samples=rows)


FLAT: Group = [(1.0, 0.0, 0.5)] * 3
VARIED: Group = [(1.0, 0.0, 0.5), (0.0, 0.0, 0.5), (0.0, 0.0, 0.5)]
CANCEL: Group = [(1.0, -1.0, 0.5), (0.0, 0.0, 0.5), (0.5, -0.5, 0.5)]


def test_half_of_the_groups_is_not_more_than_half() -> None:
    assert Health(NAMES).observe(record(0, [FLAT, VARIED])) == []


def test_flat_groups_are_said_once_and_counted() -> None:
    health = Health(NAMES)
    [text] = health.observe(record(4, [FLAT, FLAT, VARIED]))
    assert text.startswith("step 4: 2 of 3 groups have equal rewards")
    assert "cancel" not in text
    assert health.observe(record(5, [FLAT, FLAT, VARIED])) == []
    assert health.observe(record(6, [VARIED])) == []
    assert health.totals() == ["more than half of the groups had equal rewards in 2 of 3 steps"]


def test_cancelling_rewards_are_named_and_innocent_ones_are_not() -> None:
    [text] = Health(NAMES).observe(record(0, [CANCEL, FLAT, VARIED]))
    assert "2 of 3 groups" in text
    assert "in 1 of them the reward functions right, short do differ but cancel" in text
    assert "tag" not in text


def test_a_prompt_drawn_twice_makes_two_groups() -> None:
    first, second = record(0, [FLAT]).samples, record(0, [[(0.0, 0.0, 0.0)] * 3]).samples
    both = StepRecord(step=0, metrics={}, samples=[*first, *second])
    [text] = Health(NAMES).observe(both)
    assert "2 of 2 groups" in text


def test_truncation_missing_values_and_non_finite_gradients_are_said() -> None:
    nan = math.nan
    group: Group = [(1.0, nan, 0.5), (0.0, nan, 0.5)]
    health = Health(NAMES)
    cut = record(0, [group], finish="length")
    texts = health.observe(StepRecord(step=0, metrics={"grad_norm": nan}, samples=cut.samples))
    assert texts == [
        "step 0: 2 of 2 completions were cut at the length limit",
        "step 0: reward function short gave no value for any sample",
        "step 0: the gradient norm is nan",
    ]


def test_a_step_without_samples_says_nothing() -> None:
    assert Health(NAMES).observe(StepRecord(step=0, metrics={})) == []


def test_a_judge_of_places_is_named_once() -> None:
    health = Health(NAMES)
    metrics = {"rewards/short/flipped": 0.75, "rewards/short/first_slot": 0.9, "grad_norm": 0.5}
    judged = StepRecord(step=2, metrics=metrics, samples=record(2, [VARIED]).samples)
    [text] = health.observe(judged)
    assert text.startswith("step 2: judge short prefers another answer in the other order for 75%")
    assert "slot A has 90%" in text
    assert health.observe(judged) == []
