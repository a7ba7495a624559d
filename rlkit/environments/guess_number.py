"""The environment thinks of a number; it answers each `<guess>4</guess>` with higher or lower."""

from __future__ import annotations

import random
import re
from typing import TypedDict, cast

from rlkit.environments.base import Action, Example, Message, Turn

_GUESS = re.compile(r"<guess>\s*(-?\d{1,9})\s*</guess>")


class Secret(TypedDict):
    """The state is the number, and how many guesses are left."""

    number: int
    left: int


class GuessNumber:
    """A guess earns 1 if it is right, and 0 if not; guesses that halve the range always get there.

    The seed draws the number from `low` to `high` of the example's columns. Nothing in the prompt
    tells it, and the samples of a group look for the same one.
    """

    def __init__(self, guesses: int = 3) -> None:
        if guesses < 1:
            raise ValueError(f"environment.options.guesses must be >= 1, got {guesses}")
        self._guesses = guesses

    def start(self, example: Example, seed: int) -> tuple[Secret, Turn]:
        """Think of a number."""
        low, high = (cast(int, example.columns[name]) for name in ("low", "high"))
        number = random.Random(seed).randint(low, high)
        return {"number": number, "left": self._guesses}, Turn()

    def step(self, state: Secret, action: Action) -> tuple[Secret, Turn]:
        """Compare the last guess of a turn; a turn without one ends the episode."""
        guesses = _GUESS.findall(action.text)
        if not guesses:
            return state, Turn(reward=0.0, done=True, info={"success": 0.0, "neither": 1.0})
        guess, left = int(guesses[-1]), state["left"] - 1
        right = guess == state["number"]
        if right or left == 0:
            return state, Turn(reward=float(right), done=True, info={"success": float(right)})
        text = "higher" if guess < state["number"] else "lower"
        return {**state, "left": left}, Turn((Message("user", text),), reward=0.0)
