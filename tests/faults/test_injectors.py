"""The injectors of `make faults`, a few of each kind: nothing may be lost."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.faults.page import rows_of, table
from benchmarks.faults.row import Row

# Those that start runs take seconds each. What other tests of `make test` ask for too is nightly.
NIGHTLY = ("damage", "derived", "environments", "formulas", "kill", "names", "seeds", "strangers")
COUNTS = {
    "boundaries": 8,
    "completions": 8,
    "damage": 100,
    "derived": 1,
    "environments": 8,
    "formulas": 20,
    "kill": 1,
    "leftovers": 9,
    "names": 20,
    "not_finite": 14,
    "prompts": 4,
    "resume": 1,
    "seeds": 1,
    "signals": 3,
    "splits": 42,
    "strangers": 69,
    "trackers": 1,
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.nightly] if f in NIGHTLY else []) for f in COUNTS],
)
def test_nothing_is_lost(family: str, tmp_path: Path) -> None:
    row: Row = importlib.import_module(f"benchmarks.faults.{family}").run(COUNTS[family], tmp_path)
    assert row.lost == 0, row.note
    assert row.injected == row.survived >= COUNTS[family], row.note


def test_the_table_has_a_line_for_each_result() -> None:
    rows = [Row("F2 b", 2, 2, 0, "x|y"), Row("soak", 1, 0, 1, ""), Row("F10 c", 1, 1, 0, "")]
    records = [{"rows": [rows[0].__dict__]}, rows[1].__dict__, [rows[2].__dict__]]
    assert [row.name for row in rows_of(records)] == ["F2 b", "F10 c", "soak"]
    assert table(rows[:1]).splitlines()[-1] == "| F2 b | 2 | 2 | 0 | x/y |"
