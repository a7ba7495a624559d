"""This module checks that options of a judge or a reward model are texts, numbers or booleans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

_RULES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def of_their_kinds(key: str, options: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` with each value of the kind that its default has.

    A whole number may be written as 1e4. Choices and options whose default is None are left as they
    are.

    Args:
        key: What the options are called in messages.
        options: A dataclass of options; each has a default or a factory of one.
        given: Values by the names of its fields.

    Returns:
        A copy, whole numbers as int.

    Raises:
        ValueError: A value has another kind; one line names the option and the value.
    """
    values = dict(given)
    for field in fields(options):
        kind = type(field.default)
        if field.name not in given or field.default is MISSING or kind not in _RULES:
            continue
        value = given[field.name]
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _is_of(kind, value):
            raise ValueError(f"{key}.{field.name} must be {_RULES[kind]}, got {value!r:.60}")
        values[field.name] = value
    return values


def _is_of(kind: type, value: object) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not math.isnan(value)
    return isinstance(value, kind)
