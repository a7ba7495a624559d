"""A directory answers `<search>Alice</search>`; its numbers are drawn anew for each episode."""

from __future__ import annotations

import random
import re
from typing import TypedDict, cast

from rlkit.environments.base import Action, Example, Message, Turn

_CALL = re.compile(r"<search>\s*(.*?)\s*</search>", re.DOTALL)
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


class Directory(TypedDict):
    """The state is the directory, and whose number is asked for."""

    numbers: dict[str, str]
    name: str


class Lookup:
    """The last turn earns 1 for the right number: without a search it cannot be known."""

    def start(self, example: Example, seed: int) -> tuple[Directory, Turn]:
        """Draw a number for each of the example's `names`; the first is asked for."""
        names = cast(list[str], example.columns["names"])
        rng = random.Random(seed)
        numbers = {name: str(rng.randrange(100, 1000)) for name in names}
        return {"numbers": numbers, "name": names[0]}, Turn()

    def step(self, state: Directory, action: Action) -> tuple[Directory, Turn]:
        """Search, judge an answer, or end an episode that does neither."""
        answers = _ANSWER.findall(action.text)
        if answers:
            right = float(answers[-1] == state["numbers"][state["name"]])
            return state, Turn(reward=right, done=True, info={"success": right})
        calls = _CALL.findall(action.text)
        if not calls:
            return state, Turn(reward=0.0, done=True, info={"success": 0.0, "neither": 1.0})
        number = state["numbers"].get(calls[-1])
        text = f"{calls[-1][:20]}: {number}" if number else "nobody of that name"
        info = {"calls": 1.0, "errors": float(number is None)}
        return state, Turn((Message("user", text),), info=info)
