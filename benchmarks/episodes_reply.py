"""The environment of `benchmarks.episodes`: one reply of 32 letters between two turns."""

from __future__ import annotations

from rlkit.environments import Action, Example, Message, Turn


class TwoTurns:
    """Replies to the first turn and ends with the second."""

    def start(self, example: Example, seed: int) -> tuple[int, Turn]:
        """Keep the seed."""
        return seed, Turn()

    def step(self, state: int, action: Action) -> tuple[int, Turn]:
        """Say 32 letters, or nothing more."""
        letters = "".join(chr(97 + (state >> i) % 26) for i in range(32))
        return state, Turn((Message("user", letters),), done=action.turn == 1)
