"""These are the five GSM8K rewards of the public GRPO notebooks of February 2025.

They do what `willccbb/grpo_demo.py` and Unsloth's notebooks did, quirks included, so that curves
compare. The completion should be

    <reasoning>
    ...
    </reasoning>
    <answer>
    ...
    </answer>
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.numbers import plain, same_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_SOFT = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>")
_STRICT = re.compile(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$")
_INTEGER = re.compile(r"[-+\u2212]?(?:\d+|\d{1,3}(?:,\d{3})+)")
_SOFT_LINES = re.compile(_SOFT.pattern, re.DOTALL)
_STRICT_LINES = re.compile(_STRICT.pattern, re.DOTALL)


def xml_answer(text: str) -> str:
    """Return what stands between the last `<answer>` and the next `</answer>`, stripped.

    Without tags this is the whole text, as published.
    """
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


@per_sample
def correctness(
    completion: Completion, *, column: str = "answer", as_numbers: bool = False
) -> float:
    """Return 2.0 when the answer equals the prompt's `column`, else 0.0.

    As published, the two are compared as strings; `as_numbers` makes 1,234.0 the same as 1234.
    """
    answer, gold = xml_answer(completion.text), completion.prompt.columns[column]
    return 2.0 * (same_answer(answer, gold) if as_numbers else answer == plain(gold))


@per_sample
def integer_answer(completion: Completion, *, signed: bool = False) -> float:
    """Return 0.5 when the answer consists of digits, else 0.0.

    As published, a negative answer earns nothing; `signed` also pays for -42 and 1,042.
    """
    answer = xml_answer(completion.text)
    return 0.5 * (bool(_INTEGER.fullmatch(answer)) if signed else answer.isdigit())


@per_sample
def soft_format(completion: Completion, *, multiline: bool = False) -> float:
    """Return 0.5 when the text starts with reasoning and answer tags in that order.

    As published, `.` matches no newline, so only single-line contents count; `multiline` mends it.
    """
    pattern = _SOFT_LINES if multiline else _SOFT
    return 0.5 * bool(pattern.match(completion.text))


@per_sample
def strict_format(completion: Completion, *, multiline: bool = False) -> float:
    """Return 0.5 when the whole text has the format above, final newline included.

    As published, `.` matches no newline, so only one line of reasoning and one of answer count;
    `multiline` mends it.
    """
    pattern = _STRICT_LINES if multiline else _STRICT
    return 0.5 * bool(pattern.match(completion.text))


@per_sample
def xmlcount(completion: Completion) -> float:
    """Return 0.125 for each of the four tags that stands once with its newlines.

    Text after the end costs 0.001 a character, once for each of the last two tags that is there.
    The value is at most 0.5 and has no lower bound: 1000 characters after the answer cost 2.0.
    """
    text = completion.text
    score = 0.125 * (text.count("<reasoning>\n") == 1)
    score += 0.125 * (text.count("\n</reasoning>\n") == 1)
    if text.count("\n<answer>\n") == 1:
        score += 0.125 - 0.001 * len(text.split("\n</answer>\n")[-1])
    if text.count("\n</answer>") == 1:
        score += 0.125 - 0.001 * (len(text.split("\n</answer>")[-1]) - 1)
    return score
