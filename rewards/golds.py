"""This module asks before training what the built-in rewards need of every row.

A row that a function cannot judge gets None from it in every step, without a word. A look at the
columns finds such rows for the price of a dictionary access.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlkit.rewards.answers import number_problem
from rlkit.rewards.config import RewardSpec
from rlkit.rewards.numbers import missing_column
from rlkit.rewards.parts import OF_PART, PART

_HOLDS: Mapping[str, tuple[tuple[str, str, tuple[type, ...]], ...]] = {
    "choice": (("column", "answer", (str, int)),),
    "countdown": (("numbers", "numbers", (list,)), ("target", "target", (str, int, float))),
    "code": (("column", "tests", (list,)),),
    "reasoning_gym": (("column", "entry", (dict,)),),
}
"""Further functions need these: the option that names a column, its default, and its types."""
_NAMES = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
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
    if spec.fn == OF_PART:
        return _part_problem(spec, columns)
    if spec.fn in _HOLDS:
        return _type_problem(spec, columns)
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


def _type_problem(spec: RewardSpec, columns: Mapping[str, object]) -> str | None:
    for option, default, types in _HOLDS[spec.fn]:
        column = str(spec.options.get(option, default))
        if problem := missing_column(columns, column):
            return problem
        value = columns[column]
        if not isinstance(value, types) or isinstance(value, bool):
            allowed = " or ".join(dict.fromkeys(_NAMES[kind] for kind in types))
            return f"column {column} must hold {allowed}, got {value!r:.60}"
    return None


def _part_problem(spec: RewardSpec, columns: Mapping[str, object]) -> str | None:
    """Say why a part's function cannot judge a row; rows of other parts are none of its business.

    A mixture is endless, so that only its held-out rows are looked at, each by its own part.
    """
    if columns.get(PART) != spec.options.get("part"):
        return None
    own = RewardSpec(spec.name, str(spec.options["fn"]), options=spec.options.get("options") or {})
    return row_problem(own, columns)
