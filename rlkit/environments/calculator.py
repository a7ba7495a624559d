"""A calculator answers `<calc>347 * 26</calc>`; `<answer>9022</answer>` ends the episode."""

from __future__ import annotations

import re
from typing import TypedDict

from rlkit.environments.arithmetic import calculate
from rlkit.environments.base import Action, Example, Message, Turn

_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


class Product(TypedDict):
    """The state is the right answer; what was said is in the conversation."""

    answer: str


class Calculator:
    """The last turn earns 1 for the right answer and 0 for any other."""

    def start(self, example: Example, seed: int) -> tuple[Product, Turn]:
        """Take the right answer from the example's column `answer`."""
        return {"answer": str(example.columns["answer"])}, Turn()

    def step(self, state: Product, action: Action) -> tuple[Product, Turn]:
        """Calculate, judge an answer, or end an episode that does neither."""
        answers = _ANSWER.findall(action.text)
        if answers:
            right = float(answers[-1] == state["answer"])
            return state, Turn(reward=right, done=True, info={"success": right})
        calls = _CALL.findall(action.text)
        if not calls:
            return state, Turn(reward=0.0, done=True, info={"success": 0.0, "neither": 1.0})
        try:
            text, failed = calculate(calls[-1]), 0.0
        except ValueError as error:
            text, failed = f"error: {error}", 1.0
        return state, Turn((Message("user", text),), info={"calls": 1.0, "errors": failed})
