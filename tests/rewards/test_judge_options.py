"""A judge's options are of their kinds, or one line says which is not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlkit.rewards import RewardSpec
from rlkit.rewards.judge.scorer import JudgeScorer

KEY = "reward.functions.judge.options"


def judge_of(**options: Any) -> JudgeScorer:
    given = {"url": "http://h", "model": "m", **options}
    return JudgeScorer(RewardSpec("judge", "judge", 1.0, given))


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("retries", 1.5, "a whole number, got 1.5"),
        ("max_in_flight", 2.5, "a whole number"),
        ("max_in_flight", True, "a whole number, got True"),
        ("levels", "5", "a whole number, got '5'"),
        ("timeout_s", math.nan, "a number, got nan"),
        ("timeout_s", "60", "a number"),
        ("cache_only", "false", "true or false, got 'false'"),
        ("url", None, "a text, got None"),
        ("model", 7, "a text, got 7"),
        ("prompt", 7, "a text"),
        ("column", ["answer"], "a text"),
        ("max_calls", -1, ">= 0, got -1"),
    ],
)
def test_an_option_of_another_kind_is_one_line(option: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{KEY}.{option} must be {rule}"):
        judge_of(**{option: value})


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert repr(judge_of(max_calls=1e4).options.max_calls) == "10000"
