"""This module rewards answers without tags: an exact line, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.numbers import close, missing_column, numbers_in, same_answer, whole_number
from rlkit.rewards.tags import first_answer

if TYPE_CHECKING:
    from rlkit.types import Completion


class Where(StrEnum):
    """This names the place in a completion where the number is looked for."""

    last = "last"
    """The last number of the text."""
    first = "first"
    """The first number of the text."""
    tag = "tag"
    """The only number inside the first `<answer></answer>`."""


@per_sample
def raw_exact(completion: Completion, *, column: str = "answer") -> float | None:
    """Return 1.0 when the first line of the text is the prompt's `column`, else 0.0.

    Spaces around the line do not matter. Two numbers are compared as numbers: 7.0 answers 7.
    A column that holds null gives None: the prompt cannot be judged.
    """
    gold = completion.prompt.columns[column]
    if gold is None:
        return None
    return float(same_answer(completion.text.lstrip(" ").split("\n", 1)[0], gold))


@per_sample
def numeric_match(
    completion: Completion,
    *,
    column: str = "answer",
    where: str = "last",
    relative_tolerance: float = 0.0,
    absolute_tolerance: float = 0.0,
) -> float | None:
    """Return 1.0 when the number in the text equals the number in the prompt's `column`.

    Numbers are exact rationals, fractions such as 3/4 included. Thousands separators, units and
    currency signs around a number do not matter.

    Args:
        completion: The sample.
        column: The column that holds the right number, or a text that ends in it.
        where: One of `last`, `first` and `tag`, see `Where`.
        relative_tolerance: Share of the larger number by which the two may differ, >= 0.
        absolute_tolerance: The same in the numbers' own unit, >= 0.

    Returns:
        1.0 or 0.0; None when the column holds no number, so that the prompt cannot be judged.
    """
    expected = gold_number(completion.prompt.columns[column])
    if expected is None:
        return None
    found = _candidate(completion.text, Where(where))
    if found is None:
        return 0.0
    return float(
        close(
            found,
            expected,
            relative_tolerance=relative_tolerance,
            absolute_tolerance=absolute_tolerance,
        )
    )


def gold_number(value: object) -> Fraction | None:
    """Return the number that a column holds: a JSON number, or the last number of a text."""
    whole = whole_number(value)
    if whole is not None or not isinstance(value, str):
        return whole
    numbers = numbers_in(value)
    return numbers[-1] if numbers else None


def number_problem(columns: Mapping[str, object], *, column: str = "answer") -> str | None:
    """Say why `numeric_match` cannot judge a row with these columns; None when it can."""
    problem = missing_column(columns, column)
    if problem is None and gold_number(columns[column]) is None:
        problem = f"column {column} holds no number, got {columns[column]!r:.60}"
    return problem


def _candidate(text: str, where: Where) -> Fraction | None:
    if where is Where.tag:
        numbers = numbers_in(first_answer(text) or "")
        return numbers[0] if len(numbers) == 1 else None
    numbers = numbers_in(text)
    if not numbers:
        return None
    return numbers[-1 if where is Where.last else 0]
