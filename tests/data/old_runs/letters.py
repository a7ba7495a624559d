"""A reward that a random model earns: the share of characters that are ASCII letters."""

from __future__ import annotations

from typing import Any


def letters(group: Any) -> list[float]:
    """Return the letters of each completion divided by its tokens."""
    return [sum(c.isascii() and c.isalpha() for c in s.text) / 8 for s in group]
