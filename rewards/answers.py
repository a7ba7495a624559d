"""Answers without tags: an exact line, or a number."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.tags import first_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")


class Where(StrEnum):
    """Where in a completion the number is looked for."""

    last = "last"
    """The last number of the text."""
    first = "first"
    """The first number of the text."""
    tag = "tag"
    """The only number inside the first `<answer></answer>`."""


@per_sample
def raw_exact(completion: Completion, *, column: str = "answer") -> float:
    """1.0 when the first line of the text is the prompt's `column`, spaces around it aside."""
    first_line = completion.text.lstrip(" ").split("\n", 1)[0].strip()
    return float(first_line == str(completion.prompt.columns[column]).strip())


@per_sample
def numeric_match(
    completion: Completion,
    *,
    column: str = "answer",
    where: str = "last",
    relative_tolerance: float = 0.0,
) -> float | None:
    """1.0 when the number in the text equals the number in the prompt's `column`.

    Thousands separators, signs, units and currency signs around the number do not matter.
    `relative_tolerance`, >= 0, is relative to the larger of the two. None when the column holds no
    number: the prompt cannot be judged.
    """
    expected = numbers_in(str(completion.prompt.columns[column]))
    if not expected:
        return None
    found = _candidate(completion.text, Where(where))
    if found is None:
        return 0.0
    return float(math.isclose(found, expected[-1], rel_tol=relative_tolerance, abs_tol=0.0))


def numbers_in(text: str) -> list[float]:
    """The decimal numbers of a text, in order; "1,234.5" is one number, "1,23" is two."""
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _candidate(text: str, where: Where) -> float | None:
    if where is Where.tag:
        numbers = numbers_in(first_answer(text) or "")
        return numbers[0] if len(numbers) == 1 else None
    numbers = numbers_in(text)
    if not numbers:
        return None
    return numbers[-1 if where is Where.last else 0]
