"""The environment of `benchmarks.episodes`: replies of 32 letters between the turns."""

from __future__ import annotations

from rlkit.environments import Action, Example, Message, Turn


class Replies:
    """Replies to all turns but the last, and pays for none."""

    def __init__(self, turns: int = 2) -> None:
        self._turns = turns

    def start(self, example: Example, seed: int) -> tuple[int, Turn]:
        """Keep the seed."""
        return seed, Turn()

    def step(self, state: int, action: Action) -> tuple[int, Turn]:
        """Say 32 letters, or nothing more."""
        letters = "".join(chr(97 + (state >> i) % 26) for i in range(32))
        return state, Turn((Message("user", letters),), done=action.turn + 1 == self._turns)
