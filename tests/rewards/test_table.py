"""The table of docs/rewards.md names functions that there are, and options that they take."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from rlkit.rewards.load import REGISTRY

SET_BY_RLKIT = {"environment", "of_part"}
"""Functions that an environment or a mixture sets, and nobody names."""
PAGE = Path(__file__).parents[2] / "docs/rewards.md"


def table() -> list[tuple[list[str], list[str]]]:
    """The functions and the options of each row."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    code = re.compile(r"`(\w+)`")
    return [(code.findall(row[0]), code.findall(row[-1])) for row in rows]


def test_every_function_has_a_row() -> None:
    assert {name for functions, _ in table() for name in functions} | SET_BY_RLKIT == set(REGISTRY)


def test_every_option_is_taken_by_a_function_of_its_row() -> None:
    assert len(table()) > 15
    for functions, options in table():
        taken: set[str] = set()
        for name in functions:
            module, _, function = REGISTRY[name].partition(":")
            found = getattr(importlib.import_module(module), function)
            taken |= set(inspect.signature(inspect.unwrap(found)).parameters)
        assert set(options) <= taken, (functions, options, taken)
