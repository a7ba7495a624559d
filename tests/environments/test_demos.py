"""The demo tasks: solved by whoever plays them right, and by nobody else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from rlkit.environments import EnvironmentConfig, EnvironmentSpec, Message, Turn
from rlkit.environments.base import Action
from rlkit.environments.load import REGISTRY, load
from rlkit.tasks import Split, Task, build_task, with_environment
from rlkit.tasks.agents import succeeded
from rlkit.tasks.config import (
    CalculatorConfig,
    EchoConfig,
    GuessNumberConfig,
    LookupConfig,
    MaxOfNConfig,
    TaskConfig,
)
from rlkit.types import Completion, Episode, EpisodeEnd, FinishReason, Prompt, TurnRecord

CONFIGS: dict[str, TaskConfig] = {
    "calculator": CalculatorConfig(),
    "guess_number": GuessNumberConfig(),
    "lookup": LookupConfig(),
}
Player = Callable[[list[str]], str]
"""A player hears what was said so far, and returns its next words."""


def calculates(heard: list[str]) -> str:
    (product,) = re.findall(r"\d+ \* \d+", heard[0])
    return f"<answer>{heard[1]}</answer>" if len(heard) > 1 else f"<calc>{product}</calc>"


def halves(heard: list[str]) -> str:
    low, high = map(int, re.findall(r"\d+", heard[0])[:2])
    for answer in heard[1:]:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if answer == "higher" else (low, middle - 1)
    return f"<guess>{(low + high) // 2}</guess>"


def searches(heard: list[str]) -> str:
    (name,) = re.findall(r"number of ([\w ]+)\?", heard[0])
    number = heard[1].split(": ")[1] if len(heard) > 1 else ""
    return f"<answer>{number}</answer>" if number else f"<search>{name}</search>"


PLAYERS: dict[str, Player] = {"calculator": calculates, "guess_number": halves, "lookup": searches}


def play(name: str, split: Split, index: int, player: Player, *, seed: int) -> list[Turn]:
    environment = load(name, {}).environment
    example = split.get(index)
    assert isinstance(example.prompt, tuple)
    heard = [example.prompt[-1].content]
    state, _ = environment.start(example, seed)
    turns: list[Turn] = []
    while not (turns and turns[-1].done):
        state, turn = environment.step(
            json.loads(json.dumps(state)), Action(player(heard), (), len(turns))
        )
        turns.append(turn)
        heard += [message.content for message in turn.messages]
    return turns


def earned(turns: list[Turn]) -> float:
    return sum(turn.reward or 0.0 for turn in turns)


@pytest.mark.parametrize("name", CONFIGS)
def test_right_play_always_earns_1(name: str) -> None:
    task = build_task(CONFIGS[name])
    for index in range(40):
        for seed in (1, 2**62 + index):
            turns = play(name, task.train, index, PLAYERS[name], seed=seed)
            assert earned(turns) == 1.0
            assert turns[-1].info["success"] == 1.0


def test_an_answer_without_a_search_is_luck() -> None:
    task = build_task(CONFIGS["lookup"])
    won = [
        earned(play("lookup", task.train, i, lambda _: "<answer>512</answer>", seed=i))
        for i in range(200)
    ]
    assert sum(won) <= 2


def test_guessing_blindly_finds_three_of_seven() -> None:
    task = build_task(CONFIGS["guess_number"])

    def counts_up(heard: list[str]) -> str:
        low = int(re.findall(r"\d+", heard[0])[0])
        return f"<guess>{low + len(heard) - 1}</guess>"

    won = [earned(play("guess_number", task.train, 0, counts_up, seed=s)) for s in range(700)]
    assert sum(won) / 700 == pytest.approx(3 / 7, abs=0.06)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "said", ["", "I do not know", "<answer>", "<calc></calc>" * 3, "<guess>x</guess>"]
)
def test_nonsense_ends_or_is_told_and_earns_nothing(name: str, said: str) -> None:
    task = build_task(CONFIGS[name])
    environment = load(name, {}).environment
    state, _ = environment.start(task.train.get(0), 3)
    _, turn = environment.step(state, Action(said, (), 0))
    assert not turn.reward
    assert turn.done or isinstance(turn.messages[0], Message)


@pytest.mark.parametrize("name", CONFIGS)
def test_halves_share_no_problem_and_examples_are_json(name: str) -> None:
    task = build_task(CONFIGS[name])
    assert task.environment == EnvironmentSpec(name) and name in REGISTRY
    held = {task.eval.get(i).prompt for i in range(task.eval.size or 0)}
    assert len(held) == task.eval.size
    trained = [task.train.get(i) for i in range(200)]
    assert not held & {example.prompt for example in trained}
    assert all(json.loads(json.dumps(e.columns)) == e.columns for e in trained)
    assert task.train.get(7) == build_task(CONFIGS[name]).train.get(7)


def completion(*infos: dict[str, float]) -> Completion:
    turns = tuple(TurnRecord(i, i + 1, None, info) for i, info in enumerate(infos))
    return Completion(
        prompt=Prompt(index=0, ids=(1,), text=""),
        text="",
        ids=(1,),
        finish_reason=FinishReason.stop,
        episode=Episode(turns=turns, end=EpisodeEnd.done),
    )


def test_success_is_the_environments_own_count() -> None:
    assert succeeded(completion({"calls": 1.0}, {"success": 1.0}))
    assert not succeeded(completion({"success": 0.0}))


def test_an_environment_joins_a_task_and_its_rewards() -> None:
    task: Task = build_task(EchoConfig())
    assert with_environment(task, EnvironmentConfig()) is task
    joined = with_environment(task, EnvironmentConfig(fn="calculator", options={"a": 1}))
    assert joined.environment == EnvironmentSpec("calculator", {"a": 1})
    assert [r.name for r in joined.rewards] == [*(r.name for r in task.rewards), "environment"]
    own: Any = with_environment(build_task(CONFIGS["lookup"]), EnvironmentConfig(max_turns=2))
    assert [r.name for r in own.rewards] == ["environment"]
    with pytest.raises(ValueError, match=r"^environment\.fn must be empty with a task of plain"):
        with_environment(build_task(MaxOfNConfig()), EnvironmentConfig(fn="calculator"))
    with pytest.raises(ValueError, match=r"^environment\.timeout_s must be left alone"):
        with_environment(task, EnvironmentConfig(timeout_s=3.0))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("max_turns", 0, ">= 1"),
        ("max_turn_tokens", 0, ">= 1 or null"),
        ("timeout_s", 0.0, "> 0 and finite"),
        ("memory_mb", 8, ">= 64 or null"),
        ("workers", 0, ">= 1"),
    ],
)
def test_bad_options_are_one_line(key: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^environment.{key} must be {re.escape(rule)}, got"):
        EnvironmentConfig(**{key: value})  # type: ignore[arg-type]
