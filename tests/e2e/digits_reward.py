"""A reward of the user's own: even a random model earns some of it, so gradients are not zero."""

from __future__ import annotations

from typing import Any


def digits(group: Any) -> list[float]:
    """Share of characters that are ASCII letters."""
    return [sum(c.isascii() and c.isalpha() for c in s.text) / 8 for s in group]
