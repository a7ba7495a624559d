"""The further reward functions, each against a table of strings scored by hand."""

from __future__ import annotations

import json

import pytest

from rlkit.rewards import RewardSpec
from rlkit.rewards.choice import choice
from rlkit.rewards.countdown import countdown
from rlkit.rewards.format import json_schema, regex, tags_in_order
from rlkit.rewards.golds import row_problem
from rlkit.rewards.language import language, script
from rlkit.rewards.length import length_range, overlong
from rlkit.rewards.math import math_answer
from rlkit.types import Completion, FinishReason, Prompt


def completion(text: str, *, num_tokens: int = 1, **columns: object) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="question", columns=columns)
    ids = tuple(range(num_tokens))
    return Completion(prompt=prompt, text=text, ids=ids, finish_reason=FinishReason.stop)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("B", "B", 1.0),
        ("b", "B", 1.0),
        ("(B)", "B", 1.0),
        ("B. Paris", "B", 1.0),
        ("The answer is B.", "B", 1.0),
        ("The answer is (C), not B.", "C", 1.0),
        ("A is wrong. The correct answer is: **D**", "D", 1.0),
        ("First I thought the answer is A, but the answer is C", "C", 1.0),
        ("so \\boxed{B}", "B", 1.0),
        ("so \\boxed{\\text{B}}", "B", 1.0),
        ("so \\boxed{\\text{(B) Paris}}", "B", 0.0),  # a box with more than the letter
        ("<answer>B</answer> though the answer is A", "B", 1.0),
        ("<answer>(B)</answer>", "B", 1.0),
        ("<answer>B. Paris</answer>", "B", 1.0),
        ("<answer>Paris</answer> the answer is B", "B", 0.0),  # the tag decides
        ("I weigh the options.\nB\n", "B", 1.0),
        ("A man walks.", "A", 0.0),  # an article
        ("answer is F", "A", 0.0),
        ("", "A", 0.0),
        ("The answer is C", 2, 1.0),
        ("The answer is A", 2, 0.0),
    ],
)
def test_choice(text: str, answer: object, expected: float) -> None:
    assert choice(completion(text, answer=answer)) == expected


def test_choice_refuses_another_gold() -> None:
    assert choice(completion("A", answer=None)) is None
    with pytest.raises(ValueError, match=r"column answer must be in \[0, 5\), got 7"):
        choice(completion("A", answer=7))
    with pytest.raises(ValueError, match="column answer must be one of ABCDE, got 'Paris'"):
        choice(completion("A", answer="Paris"))
    assert choice(completion("The answer is F", answer="F"), letters="ABCDEFGHIJ") == 1.0


@pytest.mark.parametrize(
    ("pattern", "part", "text", "expected"),
    [
        (r"\d+", "anywhere", "so 42.", 1.0),
        (r"\d+", "start", "so 42.", 0.0),
        (r"\d+", "whole", "42", 1.0),
        (r"\d+", "whole", "42.", 0.0),
        (r"<a>.*</a>", "whole", "<a>x\ny</a>", 1.0),  # a dot matches newlines
        (r"yes|no", "whole", "maybe", 0.0),
    ],
)
def test_regex(pattern: str, part: str, text: str, expected: float) -> None:
    assert regex(completion(text), pattern=pattern, part=part) == expected


def test_regex_refuses_what_is_none() -> None:
    with pytest.raises(ValueError, match=r"pattern must be a regular expression, got '\('"):
        regex(completion("x"), pattern="(")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think>a</think>b<answer>c</answer>", 0.0),  # text between
        ("well <think>a</think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),  # empty
        ("<think> </think><answer>b</answer>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
    ],
)
def test_tags_in_order(text: str, expected: float) -> None:
    assert tags_in_order(completion(text)) == expected


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 3}', 1.0),
        ('Here:\n```json\n{"n": 3}\n```', 1.0),
        ('{"n": 3.0}', 1.0),  # an integer by JSON Schema
        ('{"n": "3"}', 0.0),
        ('{"n": -1}', 0.0),
        ('{"n": 3, "m": 1}', 0.0),
        ("{}", 0.0),
        ('{"n": 3', 0.0),
        ('so {"n": 3}', 0.0),  # not JSON as a whole
        ('{"n": NaN}', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(text: str, expected: float) -> None:
    assert json_schema(completion(text), schema=SCHEMA) == expected
    assert json_schema(completion(text, schema=json.dumps(SCHEMA))) == expected


def test_json_schema_says_what_is_wrong() -> None:
    assert json_schema(completion("{}", schema=None)) is None
    with pytest.raises(ValueError, match="schema must be a JSON Schema"):
        json_schema(completion("{}"), schema={"type": "number-ish"})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("latin", "abc", 1.0),
        ("latin", "ab вг", 0.5),
        ("cyrillic", "ab вг", 0.5),
        ("han", "你好 a", 2 / 3),
        ("latin", "ä é ß 12!", 1.0),
        ("greek", "αβγ", 1.0),
        ("latin", "12 + 3 = 15", None),
    ],
)
def test_script(name: str, text: str, expected: float | None) -> None:
    assert script(completion(text), name=name) == expected


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "This is a longer sentence about the weather in the north of the country.", 1.0),
        ("de", "Das ist ein längerer Satz über das Wetter im Norden des Landes.", 1.0),
        ("en", "Das ist ein längerer Satz über das Wetter im Norden des Landes.", 0.0),
        ("fr", "Ceci est une phrase plus longue sur le temps dans le nord du pays.", 1.0),
        ("zh", "这是一个关于天气的比较长的句子。", 1.0),
        ("en", "1 + 1 = 2", None),
    ],
)
def test_language(code: str, text: str, expected: float | None) -> None:
    assert language(completion(text), code=code) == expected
    assert language(completion(text), code=code, among=["en", "de", "fr", "zh"]) == expected


def test_language_refuses_unknown_codes() -> None:
    with pytest.raises(ValueError, match=r"code must be one of .*, got tlh"):
        language(completion("text"), code="tlh")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (150, -1.0)],
)
def test_overlong_is_dapos(tokens: int, expected: float) -> None:
    found = overlong(completion("x", num_tokens=tokens), max_length=100, buffer=20)
    assert found == pytest.approx(expected, abs=1e-12)


def test_length_range() -> None:
    values = [
        length_range(completion("x", num_tokens=n), min_length=2, max_length=4) for n in range(7)
    ]
    assert values == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"buffer must be in \[1, max_length=4\], got 5"):
        overlong(completion("x"), max_length=4, buffer=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>(25 - 5) * 2</answer>", 1.0),
        ("<answer>2 * (25 - 5) = 40</answer>", 1.0),
        ("<answer>1</answer> or <answer>(25-5)*2</answer>", 1.0),  # the last one counts
        ("<answer>25 + 5 + 5 + 5</answer>", 0.1),  # 5 three times
        ("<answer>25 - 5</answer>", 0.1),  # 2 is not used
        ("<answer>40</answer>", 0.1),
        ("<answer>25 * 2 - 5 - 5</answer>", 0.1),
        ("<answer>(25 - 5) * 2 / 0</answer>", 0.1),
        ("<answer>__import__('os')</answer>", 0.1),
        ("<answer>(25 - 5) ** 2</answer>", 0.1),
        ("(25 - 5) * 2", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(text: str, expected: float) -> None:
    assert countdown(completion(text, numbers=[25, 5, 2], target=40)) == expected


def test_countdown_is_exact() -> None:
    third = completion("<answer>1 / 3 * 3</answer>", numbers=[1, 3, 3], target=1)
    assert countdown(third) == 1.0
    close = completion("<answer>1 / 3 * 33333</answer>", numbers=[1, 3, 33333], target=11111)
    assert countdown(close) == 1.0


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("1234.5", "It costs $1,234.50.", 1.0),
        ("1234.50", "It costs \\$1,234.50", 1.0),
        ("$12", "12", 1.0),
        ("€12", "so \\boxed{12}", 1.0),
        ("12", "€13", 0.0),
        ("50", "50%", 1.0),
        ("0.5", "50\\%", 1.0),
        ("50%", "0.5", 1.0),
        ("50%", "0.6", 0.0),
        ("5 cm", "5 cm", 1.0),
        ("5", "\\boxed{5\\text{ cm}}", 1.0),
        ("12 dollars", "She has 12 dollars", 1.0),
        ("12 dollars", "13", 0.0),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", 1.0),
        ("{1,2}", "the set {2, 1}", 1.0),
        ("{1,2}", "the set {2, 3}", 0.0),
        ("(1,2)", "the point (1, 2)", 1.0),
        ("(1,2)", "the point (2, 1)", 0.0),
        ("[0,1)", "on [0, 1)", 1.0),
        ("[0,1)", "on [0, 1]", 0.0),
        ("\\text{blue}", "\\boxed{\\text{blue}}", 1.0),
        ("blue", "The answer is Blue.", 1.0),
        ("blue", "<answer>blue</answer>", 1.0),
        ("blue", "red", 0.0),
        ("Monday", "It is not Monday but Tuesday", 0.0),
        ("2x", "\\boxed{2x}", 1.0),
        ("2 \\pi", "$2\\pi$", 1.0),
        ("x=3", "x = 3", 1.0),
    ],
)
def test_math_beyond_formulas(gold: str, text: str, expected: float) -> None:
    assert math_answer(completion(text, answer=gold)) == expected


@pytest.mark.parametrize(
    ("fn", "columns", "problem"),
    [
        ("choice", {"answer": "B"}, None),
        ("choice", {"answer": 2}, None),
        ("choice", {"answer": ["B"]}, "column answer must hold text or a number, got ['B']"),
        ("choice", {"gold": "B"}, "has no column answer, only gold"),
        ("countdown", {"numbers": [1, 2], "target": 3}, None),
        (
            "countdown",
            {"numbers": "1, 2", "target": 3},
            "column numbers must hold a list, got '1, 2'",
        ),
        ("countdown", {"numbers": [1], "target": None}, "column target must hold text or a number"),
        ("code", {"tests": "assert x"}, "column tests must hold a list, got 'assert x'"),
        ("code", {"tests": ["assert x"]}, None),
        ("reasoning_gym", {"entry": "x"}, "column entry must hold an object, got 'x'"),
    ],
)
def test_rows_that_a_function_cannot_judge(
    fn: str, columns: dict[str, object], problem: str | None
) -> None:
    found = row_problem(RewardSpec(fn, fn), columns)
    part = RewardSpec("p_x", "of_part", options={"part": "p", "fn": fn, "options": {}})
    assert row_problem(part, {**columns, "part": "q"}) is None
    inside = row_problem(part, {**columns, "part": "p"})
    if problem is None:
        assert found is None and inside is None
    else:
        assert found is not None and found.startswith(problem) and inside is not None
