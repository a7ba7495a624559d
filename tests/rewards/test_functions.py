"""The built-in reward functions against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest

from rlkit.rewards.answers import numeric_match, raw_exact
from rlkit.rewards.length import cosine_length, repetition
from rlkit.rewards.math import math_answer
from rlkit.rewards.numbers import numbers_in
from rlkit.rewards.tags import tag_answer, tag_format
from rlkit.rewards.unsloth_2025 import (
    correctness,
    integer_answer,
    soft_format,
    strict_format,
    xmlcount,
)
from rlkit.types import Completion, FinishReason, Prompt


def completion(text: str, answer: object = "42", *, num_tokens: int = 1) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="question", columns={"answer": answer})
    ids = tuple(range(num_tokens))
    return Completion(prompt=prompt, text=text, ids=ids, finish_reason=FinishReason.stop)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("<answer>Paris</answer>", "paris", 1.0),
        ("well, <answer>\n Paris \n</answer> it is", "Paris", 1.0),
        ("<answer>Rome</answer><answer>Paris</answer>", "Paris", 0.0),  # the first one counts
        ("<answer>Paris", "Paris", 0.0),
        ("Paris", "Paris", 0.0),
        ("<answer></answer>", "", 1.0),
        ("<answer>7</answer>", 7, 1.0),
        ("<answer>STRASSE</answer>", "straße", 1.0),
    ],
)
def test_tag_answer(text: str, answer: object, expected: float) -> None:
    assert tag_answer(completion(text, answer)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>x</answer>", 1.0),
        ("so: <answer>x\ny</answer>.", 1.0),
        ("<answer></answer>", 0.0),
        ("<answer>x</answer><answer>y</answer>", 0.0),
        ("</answer>x<answer>", 0.0),
        ("x", 0.0),
    ],
)
def test_tag_format(text: str, expected: float) -> None:
    assert tag_format(completion(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" 42\n", 1.0), ("42", 1.0), (" 42 \nQ: 5", 1.0), (" 421\n", 0.0), ("\n42", 0.0), ("", 0.0)],
)
def test_raw_exact(text: str, expected: float) -> None:
    assert raw_exact(completion(text)) == expected


def test_numbers_in_text() -> None:
    assert numbers_in("a 1,234.5 b -7 c .5 d 1,23 e 3.") == [1234.5, -7, 0.5, 1, 23, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/4", [Fraction(3, 4)]),
        ("1/4, then 3 / 4", [Fraction(1, 4), Fraction(3, 4)]),
        ("1e-05 and 1E22", [Fraction(1, 100_000), Fraction(10**22)]),
        ("12345678901234567891", [Fraction(12345678901234567891)]),
        ("10-3=7", [10, 3, 7]),  # a minus between two numbers is no sign
        ("covid-19", [19]),
        ("(-4) \N{MINUS SIGN}5", [-4, -5]),
        (r"\frac{3}{4} or -\dfrac{1}{2}", [Fraction(3, 4), Fraction(-1, 2)]),
        ("3/0", [None]),
        ("1e999999999", [None]),
        ("9" * 5000, [None]),
        ("2ex 3e", [2, 3]),
    ],
)
def test_numbers_are_exact_rationals(text: str, expected: list[Fraction | None]) -> None:
    assert numbers_in(text) == expected


BIG = 12345678901234567890


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("3/4", "1/4", 0.0),
        ("3/4", "0.75", 1.0),
        ("3/4", "6/8", 1.0),
        (0.00001, "0.00001", 1.0),  # a JSON number, whose text in Python is 1e-05
        (0.00001, "-5", 0.0),
        (1e22, "1" + "0" * 22, 1.0),
        (1e22, "22", 0.0),
        (BIG, str(BIG + 1), 0.0),  # equal as float64
        (BIG, str(BIG), 1.0),
        (str(BIG), str(BIG + 1), 0.0),
        (1234, "1,234.0", 1.0),
        (0.1, "0.1", 1.0),
        ("-2", "\N{MINUS SIGN}2", 1.0),
    ],
)
def test_every_reward_that_compares_numbers(gold: object, text: str, expected: float) -> None:
    tagged = completion(f"<answer>{text}</answer>", gold)
    plain = completion(f" {text}\n", gold)
    assert numeric_match(plain) == expected
    assert numeric_match(tagged, where="tag") == expected
    assert tag_answer(tagged) == expected
    assert raw_exact(plain) == expected
    assert correctness(tagged, as_numbers=True) == 2 * expected
    shaped = cosine_length(tagged, max_length=100, grader="tag_answer")
    assert shaped is not None and (shaped > 0) == bool(expected)


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("0.0000001", "0.0000002", 0.0),  # equal to math-verify, which rounds to six decimals
        (0.00001, "0.00001", 1.0),  # read as -5 + e from 1e-05
        ("3/4", "$0.75$", 1.0),
        ("3/4", r"$\frac{3}{4}$", 1.0),
        ("x+1", "$1+x$", 1.0),
    ],
)
def test_math_compares_numbers_exactly(gold: object, text: str, expected: float) -> None:
    assert math_answer(completion(text, gold)) == expected


def test_what_holds_nothing_is_not_judged() -> None:
    null = completion("<answer>None</answer>", None)
    assert tag_answer(null) is None
    assert raw_exact(completion("None", None)) is None
    assert numeric_match(completion("1", True)) is None


def test_tolerances_are_exact() -> None:
    sample = completion("0.3", "0.1")
    assert numeric_match(sample, absolute_tolerance=0.2) == 1.0  # 0.3 - 0.1 > 0.2 in float64
    assert numeric_match(sample, absolute_tolerance=0.19) == 0.0
    with pytest.raises(ValueError, match=r"absolute_tolerance must be >= 0 and finite, got -1"):
        numeric_match(sample, absolute_tolerance=-1.0)


@pytest.mark.parametrize(
    ("text", "answer", "where", "expected"),
    [
        ("first 3, so $1,042.00 in all", "1042", "last", 1.0),
        ("42 or 43", "42", "last", 0.0),
        ("42 or 43", "42", "first", 1.0),
        ("7 <answer>42 apples</answer> 9", "42", "tag", 1.0),
        ("<answer>42 or 43</answer>", "42", "tag", 0.0),
        ("nothing", "42", "last", 0.0),
        ("42", "no number", "last", None),
        ("-42", "42", "last", 0.0),
        ("It is 42.", "#### 42", "last", 1.0),
    ],
)
def test_numeric_match(text: str, answer: str, where: str, expected: float | None) -> None:
    assert numeric_match(completion(text, answer), where=where) == expected


def test_numeric_match_tolerance_is_relative() -> None:
    close = completion("3.1416", "3.14159265")
    assert numeric_match(close) == 0.0
    assert numeric_match(close, relative_tolerance=1e-5) == 1.0
    assert numeric_match(close, relative_tolerance=1e-7) == 0.0


# --- the five of February 2025 -----------------------------------------------------------------

GOOD = "<reasoning>\nsix times seven\n</reasoning>\n<answer>\n42\n</answer>\n"
MULTILINE = GOOD.replace("six times", "six\ntimes")
ONE_LINE = "<reasoning>a</reasoning> <answer>42</answer>"


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (correctness, GOOD, 2.0),
        (correctness, "42", 2.0),  # no tags: the whole text is the answer
        (correctness, "<answer>41</answer><answer>42</answer>", 2.0),  # the last one counts
        (correctness, "<answer>42.0</answer>", 0.0),
        (integer_answer, GOOD, 0.5),
        (integer_answer, "<answer>-42</answer>", 0.0),
        (integer_answer, "<answer>42.0</answer>", 0.0),
        (partial(integer_answer, signed=True), "<answer>-42</answer>", 0.5),
        (partial(integer_answer, signed=True), "<answer>1,042</answer>", 0.5),
        (partial(integer_answer, signed=True), "<answer>4.2</answer>", 0.0),
        (partial(correctness, as_numbers=True), "<answer>42.0</answer>", 2.0),
        (soft_format, ONE_LINE, 0.5),
        (soft_format, "hm " + ONE_LINE, 0.0),
        (soft_format, ONE_LINE + " and more", 0.5),
        (soft_format, GOOD, 0.0),  # as published: `.` stops at newlines
        (strict_format, GOOD, 0.5),
        (strict_format, MULTILINE, 0.0),
        (strict_format, GOOD.rstrip("\n"), 0.0),
        (strict_format, ONE_LINE, 0.0),
        (xmlcount, GOOD, 0.5),
        (xmlcount, "", 0.0),
        (xmlcount, "<reasoning>\n", 0.125),
        (xmlcount, "<reasoning>\n<reasoning>\n", 0.0),
        # Without a final newline the published count finds no "\n</answer>\n" and charges the whole
        # text (67 characters) for it, and gives one character back: 0.5 - 0.067 + 0.001.
        (xmlcount, GOOD.rstrip("\n"), 0.5 - 0.001 * len(GOOD.rstrip("\n")) + 0.001),
        # "xyz\n" after the end: 4 characters after "\n</answer>\n", 5 - 1 after "\n</answer>".
        (xmlcount, GOOD + "xyz\n", 0.5 - 0.004 - 0.004),
        (xmlcount, GOOD + "x" * 1000, 0.5 - 1.0 - 1.0),
    ],
)
def test_unsloth_2025_rewards(
    function: Callable[[Completion], float], text: str, expected: float
) -> None:
    assert function(completion(text)) == pytest.approx(expected, abs=1e-12)


def test_unsloth_2025_formats_can_span_lines() -> None:
    assert soft_format(completion(GOOD), multiline=True) == 0.5
    assert strict_format(completion(MULTILINE), multiline=True) == 0.5
    assert strict_format(completion(MULTILINE + "x"), multiline=True) == 0.0


# --- length ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_tokens", "expected"),
    [
        ("<answer>42</answer>", 0, 2.0),
        ("<answer>42</answer>", 50, 1.5),  # cos(pi/2) = 0: half way
        ("<answer>42</answer>", 25, 1.0 + (1 + math.sqrt(0.5)) / 2),
        ("<answer>41</answer>", 0, -10.0),
        ("<answer>41</answer>", 50, -5.0),
        ("<answer>42</answer>", 100, -10.0),  # at the limit, right or not
    ],
)
def test_cosine_length(text: str, num_tokens: int, expected: float) -> None:
    value = cosine_length(completion(text, num_tokens=num_tokens), max_length=100)
    assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d", 2, 0.0),  # ab bc cd: all different
        ("a b a b a", 2, -0.5),  # ab ba ab ba: 2 of 4 seen before
        ("No no NO no", 1, -0.75),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition(text: str, n: int, expected: float) -> None:
    assert repetition(completion(text), n=n) == expected


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match=r"max_length must be >= 1, got 0"):
        cosine_length(completion(""), max_length=0)
    with pytest.raises(ValueError, match=r"n must be >= 1, got 0"):
        repetition(completion(""), n=0)
    with pytest.raises(ValueError, match=r"max_penalty must be <= 0, got 1"):
        repetition(completion(""), max_penalty=1.0)
