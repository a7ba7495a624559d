"""Calculations in a solution are found and checked; luck is what shuffled questions give."""

from __future__ import annotations

import json
import random
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest

from experiments.gsm8k.analyse import arm_of, change
from experiments.gsm8k.chains import (
    Equation,
    chain_f1,
    derived,
    equations,
    guess_level,
    is_derived,
)
from experiments.gsm8k.easy import kept
from rlkit.tasks.config import GSM8KConfig
from rlkit.tasks.rows import gsm8k
from rlkit.types import Completion, FinishReason, Prompt


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He has 3 * $4 = $12.", [(12, True)]),
        ("so 20 x 2 = 40 and 40 - 5 = 36", [(40, True), (36, False)]),
        ("(2+3)*4=20", [(20, True)]),
        ("1,000 / 3 = 333.33", [(Fraction(33333, 100), True)]),
        ("1/4 * 44 = 11 seniors", [(11, True)]),
        ("It is 12 = 12; 5 of 6; x + 1 = 2", []),
        ("7 / 0 = 0", []),
        ("90 snakes * 12 beetles/snake = 1080 beetles", [(1080, True)]),
        ("2 liters * 20% = .4 liters", [(Fraction(2, 5), True)]),
        ("1 / 4 = 25%, 5 - 7 = -2", [(25, True), (-2, True)]),
        ("spent $40 − $4 = $36, 4 hats × 3 = 12", [(36, True), (12, True)]),
        ("2 boxes x 3 = 7 eggs", [(7, False)]),
    ],
)
def test_calculations(text: str, found: list[tuple[Fraction | int, bool]]) -> None:
    assert equations(text) == [Equation(Fraction(n), right) for n, right in found]


def earned(text: str, gold: str = "12") -> float:
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": gold})
    value = derived(Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop))
    assert isinstance(value, float)
    return value


def test_a_right_answer_must_be_calculated() -> None:
    assert earned("<reasoning>\n3 * 4 = 12\n</reasoning>\n<answer>\n12\n</answer>\n") == 1.0
    assert earned("<reasoning>\n3 * 4 = 12.\n</reasoning>\n<answer>\n12.0\n</answer>\n") == 1.0
    assert earned("<reasoning>\nIt is 12.\n</reasoning>\n<answer>\n12\n</answer>\n") == 0.0
    assert earned("<reasoning>\n3 * 5 = 12\n</reasoning>\n<answer>\n12\n</answer>\n") == 0.0
    assert earned("<reasoning>\n3 * 4 = 12\n</reasoning>\n<answer>\n13\n</answer>\n") == 0.0
    assert earned("3 * 4 = 12") == 0.0
    assert earned("<answer>3 * 4 = 12</answer><answer>12</answer>") == 1.0


def test_the_guess_level_is_the_mean_over_shuffled_questions() -> None:
    golds = ["1", "1", "2", "3", "5", "8"]
    answers = ["1", "2", "1", "", "8.0", "x"]
    rng = random.Random(0)
    shuffled = [
        sum(a.removesuffix(".0") == g for a, g in zip(answers, rng.sample(golds, 6), strict=True))
        / 6
        for _ in range(20_000)
    ]
    assert guess_level(answers, golds) == pytest.approx(sum(shuffled) / 20_000, abs=0.005)
    assert guess_level(["4"] * 4, ["4", "4", "5", "6"]) == 0.5


def test_the_change_is_resampled_over_seeds_and_questions() -> None:
    warm = [0.0, 1.0] * 50
    same = change([warm, warm, warm], warm)
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0}
    better = change([[1.0] * 100] * 3, warm)  # half of all questions gain 1, in every seed
    assert better["mean"] == 0.5
    # The spread of the mean of 100 draws of 0 and 1 is .05, and 1.96 of these are half an interval.
    assert better["low"] == pytest.approx(0.402, abs=0.02)
    assert better["high"] == pytest.approx(0.598, abs=0.02)
    apart = change([[1.0] * 100, [0.0] * 100], [0.0] * 100)  # only the seeds differ
    assert (apart["mean"], apart["low"], apart["high"]) == (0.5, 0.0, 1.0)


def test_policies_are_put_into_arms() -> None:
    assert [arm_of(n) for n in ("warm", "ppo-3", "trl-0-seconds")] == ["warm", "ppo", "trl-seconds"]


def test_few_calculations() -> None:
    rows = [{"answer": text} for text in ("<<1=1>>1", "none", "<<1=1>><<2=2>><<3=3>>", "<<" * 4)]
    lines = [json.dumps(row) for row in rows]
    assert kept(lines, 3) == [lines[0], lines[2]]


def test_the_check_before_training_sees_that_the_data_earns_it() -> None:
    """Gold completions are the data's own solutions, so a reward of the reasoning can be tried."""
    row = {"question": "q?", "answer": "He pays 3 * $4 = $<<3*4=12>>12.\n#### 12"}
    other = {"question": "other?", "answer": "none\n#### 1"}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("train", [other]), ("test", [row])):
            (Path(folder) / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = gsm8k(GSM8KConfig(path=folder))
    assert task.gold_completion is not None
    gold = task.gold_completion(task.eval.get(0))
    assert gold == "<reasoning>\nHe pays 3 * $4 = $12.\n</reasoning>\n<answer>\n12\n</answer>\n"
    assert is_derived(gold, "12")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("3 * 4 = 12, then 12 - 2 = 10\n<answer>\n10\n</answer>", 1.0),
        ("3 * 4 = 12\n<answer>\n12\n</answer>", 2 / 3),  # 2 x 1 / (1 + 2)
        ("12 - 2 = 10", 2 / 3),
        ("2 * 6 = 12 and 5 + 5 = 10", 1.0),  # another way to the same results
        ("3 * 4 = 12, 3 * 4 = 12, 12 - 2 = 10", 4 / 5),  # a repetition counts as written
        ("3 * 4 = 12, 12 + 2 = 14, 12 - 3 = 9, 12 - 2 = 10", 4 / 6),
        ("3 * 5 = 12, 13 - 2 = 10", 0.0),  # wrong calculations with the right results
        ("The answer is 10.\n<answer>\n10\n</answer>", 0.0),
        ("<answer>3 * 4 = 12, 12 - 2 = 10</answer>", 0.0),  # an answer is no reasoning
        ("", 0.0),
    ],
)
def test_a_chain_is_paid_for_each_result_of_the_solution(text: str, share: float) -> None:
    solution = "He has 3*4 = <<3*4=12>>12. Then $<<12-2=10>>10 are left.\n#### 10"
    assert chain_f1(text, solution) == pytest.approx(share)


def test_a_solution_without_marks_pays_nothing_and_takes_nothing() -> None:
    assert chain_f1("3 * 4 = 12", "It is 12.\n#### 12") is None
    marked = "<<1,000*.05=$50>>, <<50%*2=100%>>, <<1-2=-1>>, <<.5+.25=.75>>"
    text = "1,000 * .05 = $50, 50% * 2 = 100%, 1 - 2 = -1, .5 + .25 = .75"
    assert chain_f1(text, marked) == 1.0
