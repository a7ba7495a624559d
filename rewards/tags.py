"""Answers inside `<answer></answer>`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample

if TYPE_CHECKING:
    from rlkit.types import Completion

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def first_answer(text: str) -> str | None:
    """The stripped content of the first complete `<answer></answer>`, or None."""
    match = _TAG.search(text)
    return match.group(1).strip() if match else None


@per_sample
def tag_answer(completion: Completion, *, column: str = "answer") -> float:
    """1.0 when the first `<answer></answer>` holds the prompt's `column`, whatever the case."""
    answer = first_answer(completion.text)
    expected = str(completion.prompt.columns[column]).strip()
    return float(answer is not None and answer.casefold() == expected.casefold())


@per_sample
def tag_format(completion: Completion) -> float:
    """1.0 when the text has exactly one `<answer></answer>`, with something in it."""
    text = completion.text
    once = text.count("<answer>") == 1 and text.count("</answer>") == 1
    return float(once and bool(first_answer(text)))
