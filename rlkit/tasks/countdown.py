"""Countdown: reach a target with some numbers and the four operations, as in TinyZero."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from rlkit.rewards import RewardSpec
from rlkit.rewards.countdown import countdown as score
from rlkit.tasks.base import Example, Message, PromptStyle, Task
from rlkit.tasks.generated import Problem, splits
from rlkit.tasks.more_config import CountdownConfig
from rlkit.types import Completion

_SYSTEM = (
    "You are a helpful assistant. You first think about the reasoning process in the mind and then "
    "provide the user with the answer."
)
_REWARDS = (RewardSpec("countdown", "countdown"),)
_OPERATIONS: Mapping[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else None,
}


def countdown(config: CountdownConfig) -> Task:
    """Make a task of equations that all have a solution; each number is used once."""

    def draw(rng: random.Random) -> Problem:
        while True:
            count = rng.randint(config.min_numbers, config.max_numbers)
            numbers = [rng.randint(1, config.max_number) for _ in range(count)]
            solved = _solution(rng, numbers)
            if solved is not None and 10 <= solved[1] <= config.max_target:
                equation, target = solved
                key = ",".join(map(str, [*sorted(numbers), target]))
                return Problem(key, _example(numbers, target, equation))

    train, held = splits(draw, seed=config.seed, eval_size=config.eval_size, shots=())
    return Task(
        name=config.name,
        style=PromptStyle.chat,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=(),
        rewards=_REWARDS,
        success=_is_solved,
        gold_completion=_gold,
    )


def _solution(rng: random.Random, numbers: list[int]) -> tuple[str, int] | None:
    """Join random pairs until one equation is left; None where a division does not come out."""
    parts = [(str(number), number) for number in numbers]
    while len(parts) > 1:
        (left, a), (right, b) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        sign = rng.choice(tuple(_OPERATIONS))
        value = _OPERATIONS[sign](a, b)
        if value is None or value <= 0:
            return None
        parts.append((f"({left} {sign} {right})", value))
    return parts[0][0].removeprefix("(").removesuffix(")"), parts[0][1]


def _example(numbers: list[int], target: int, equation: str) -> Example:
    listed = ", ".join(map(str, numbers))
    question = (
        f"Using the numbers [{listed}], create an equation that equals {target}. You can use basic "
        "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work "
        "in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
        "example <answer> (1 + 2) / 3 </answer>."
    )
    prompt = (Message("system", _SYSTEM), Message("user", question))
    columns = {"numbers": list(numbers), "target": target, "solution": equation}
    return Example(prompt=prompt, columns=columns)


def _gold(example: Example) -> str:
    equation, target = example.columns["solution"], example.columns["target"]
    return f"<think>{equation} = {target}</think>\n<answer>{equation}</answer>"


def _is_solved(completion: Completion) -> bool:
    return score(completion) == 1.0
