"""This module rewards answers inside `<answer></answer>`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.numbers import plain, same_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def first_answer(text: str) -> str | None:
    """Return the stripped content of the first complete `<answer></answer>`, or None."""
    match = _TAG.search(text)
    return match.group(1).strip() if match else None


@per_sample
def tag_answer(completion: Completion, *, column: str = "answer") -> float | None:
    """Return 1.0 when the first `<answer></answer>` holds the prompt's `column`, else 0.0.

    Upper and lower case are the same. Two numbers are compared as numbers: 1,234.0 answers 1234.
    A column that holds null gives None: the prompt cannot be judged.
    """
    answer = first_answer(completion.text)
    gold = completion.prompt.columns[column]
    if gold is None:
        return None
    if answer is None:
        return 0.0
    same = answer.casefold() == plain(gold).strip().casefold()
    return float(same or same_answer(answer, gold))


@per_sample
def tag_format(completion: Completion) -> float:
    """Return 1.0 when the text has exactly one `<answer></answer>` with something in it."""
    text = completion.text
    once = text.count("<answer>") == 1 and text.count("</answer>") == 1
    return float(once and bool(first_answer(text)))
