"""One request's new tokens, as every loop over an engine hands them to the generator."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """This record holds new tokens of one request."""

    request_id: str
    token_ids: list[int]
    logps: list[float]
    finish_reason: str | None
    """`stop`, `length`, or None while the request goes on."""
    drafted: int = 0
    """Tokens that were guessed."""
    accepted: int = 0
    """Those of them that were right."""
