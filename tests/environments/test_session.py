"""Sessions with a memory of their own, played as if they were pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from rlkit.environments import Example, Message
from rlkit.environments.base import Action
from rlkit.environments.session import SessionEnvironment

OPENED: list[int] = []


class Dice:
    """Adds up what it rolls; remembers, and rolls anew at each step."""

    def __init__(self, sides: int) -> None:
        OPENED.append(sides)
        self.sides, self.total, self.steps = sides, 0, 0
        self.rng = random.Random(0)

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        self.rng = random.Random(seed)
        return f"a die of {self.sides}", {}

    def step(self, action: str, /) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.total += self.rng.randint(1, self.sides) + len(action)
        done = self.steps == 4
        return f"total {self.total}", float(done), done, False, {"rolls": 1, "text": "no number"}


class DiceEnvironment(SessionEnvironment):
    def open(self, columns: Mapping[str, Any]) -> Dice:
        return Dice(columns["sides"])


EXAMPLE = Example(prompt="q", columns={"sides": 6})


def played(environments: list[DiceEnvironment], seed: int) -> list[str]:
    """An episode of which each step is made by another environment of the list."""
    state, turn = environments[0].start(EXAMPLE, seed)
    assert turn.messages == (Message("user", "a die of 6"),)
    texts = []
    for number in range(4):
        acting = environments[number % len(environments)]
        state, turn = acting.step(state, Action("x" * number, (), number))
        texts.append(turn.messages[0].content if turn.messages else "")
        assert turn.info == {"rolls": 1.0}
    assert turn.done and turn.reward == 1.0
    return texts


def test_any_worker_can_go_on_with_an_episode() -> None:
    alone = played([DiceEnvironment()], 2**40)
    assert played([DiceEnvironment(), DiceEnvironment(), DiceEnvironment()], 2**40) == alone
    assert alone[-1] == "" and len(set(alone)) == 4


def test_a_step_is_a_function_of_its_state() -> None:
    """Repeated, or branched into two, it answers what it answered before."""
    environment = DiceEnvironment()
    state, _ = environment.start(EXAMPLE, 5)
    middle, _ = environment.step(state, Action("a", (), 0))
    first = environment.step(middle, Action("bb", (), 1))
    assert environment.step(middle, Action("bb", (), 1)) == first
    other, turn = environment.step(middle, Action("c", (), 1))
    assert environment.step(middle, Action("c", (), 1)) == (other, turn)
    assert environment.step(middle, Action("bb", (), 1)) == first


def test_a_worker_that_keeps_an_episode_opens_one_session() -> None:
    OPENED.clear()
    played([DiceEnvironment()], 1)
    assert len(OPENED) == 1
