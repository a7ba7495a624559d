"""This module asks before training what the built-in rewards need of every row.

A row that a function cannot judge gets None from it in every step, without a word. A look at the
columns finds such rows for the price of a dictionary access.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlkit.rewards.answers import number_problem
from rlkit.rewards.config import RewardSpec
from rlkit.rewards.numbers import missing_column

_COMPARES_TEXT = ("tag_answer", "raw_exact", "correctness", "math")


def row_problem(spec: RewardSpec, columns: Mapping[str, object]) -> str | None:
    """Say why a built-in function cannot judge a row with these columns.

    Args:
        spec: The function and its options.
        columns: The columns of one example.

    Returns:
        The fault of the row in a few words; None when there is none. It is also None when `spec`
        names a function of the user's, of which nothing is known here.
    """
    function = spec.fn
    if function == "cosine_length":
        function = str(spec.options.get("grader", "tag_answer"))
        column = "answer"
    else:
        column = str(spec.options.get("column", "answer"))
    if function == "numeric_match":
        return number_problem(columns, column=column)
    if function == "judge" and str(spec.options.get("opponents")) != "column":
        return None
    if function not in (*_COMPARES_TEXT, "judge"):
        return None
    if problem := missing_column(columns, column):
        return problem
    value = columns[column]
    if isinstance(value, (str, int, float)):
        return None
    return f"column {column} must hold text or a number, got {value!r:.60}"
