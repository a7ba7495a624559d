"""One line of the table of faults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """This record says how often a fault was injected, and what came of it."""

    name: str
    injected: int
    survived: int
    lost: int
    note: str
