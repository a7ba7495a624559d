"""docs/objective.md is what the command writes today."""

from __future__ import annotations

from pathlib import Path

from rlkit.oracle.table import document

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current() -> None:
    """On failure: python -m rlkit.oracle.table"""
    assert document() == (DOCS / "objective.md").read_text()
