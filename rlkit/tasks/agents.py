"""These generated tasks of several turns are small enough for a 135M model on a CPU."""

from __future__ import annotations

import random

from rlkit.environments.base import Example, Message
from rlkit.environments.config import EnvironmentSpec
from rlkit.rewards import RewardSpec
from rlkit.tasks.base import PromptStyle, Task
from rlkit.tasks.config import CalculatorConfig, GuessNumberConfig, LookupConfig, TaskConfig
from rlkit.tasks.generated import Draw, Problem, splits
from rlkit.types import Completion

_NAMES = (
    *("Alice", "Bruno", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "James"),
    *("Karen", "Lucas", "Maria", "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Simon", "Tanja"),
    *("Ursula", "Victor", "Wendy", "Xavier", "Yvonne", "Zoe", "Adam", "Bella", "Carlos", "Diana"),
)
_SPAN = 7
"""Numbers to guess from: three guesses that halve the range find any of seven."""


def calculator(config: CalculatorConfig) -> Task:
    """Make a task of products that are too large to know, with a calculator."""
    low, high = 10 ** (config.digits - 1), 10**config.digits

    def question(a: int, b: int) -> Message:
        return Message("user", f"What is {a} * {b}?")

    def draw(rng: random.Random) -> Problem:
        a, b = rng.randrange(low, high), rng.randrange(low, high)
        prompt = (*_shots(), question(a, b))
        example = Example(prompt=prompt, columns={"answer": str(a * b)})
        return Problem(",".join(map(str, sorted((a, b)))), example)

    def _shots() -> tuple[Message, ...]:
        return (
            Message("system", "Calculate with <calc></calc>. Answer with <answer></answer>."),
            question(12, 34),
            Message("assistant", "<calc>12 * 34</calc>"),
            Message("user", "408"),
            Message("assistant", "<answer>408</answer>"),
        )

    return _task(config, draw, shots=("12,34",), environment="calculator")


def guess_number(config: GuessNumberConfig) -> Task:
    """Make a task of finding a number with as few guesses as halving the range takes."""

    def question(low: int) -> Message:
        return Message(
            "user",
            f"I think of a number from {low} to {low + _SPAN - 1}. Guess it with <guess></guess>.",
        )

    def draw(rng: random.Random) -> Problem:
        low = rng.randrange(1, 90)
        prompt = (*shot, question(low))
        columns = {"low": low, "high": low + _SPAN - 1}
        return Problem(str(low), Example(prompt=prompt, columns=columns))

    shot = (
        question(41),
        Message("assistant", "<guess>44</guess>"),
        Message("user", "higher"),
        Message("assistant", "<guess>46</guess>"),
        Message("user", "lower"),
        Message("assistant", "<guess>45</guess>"),
    )
    return _task(config, draw, shots=("41",), environment="guess_number")


def lookup(config: LookupConfig) -> Task:
    """Make a task of facts that only a search can tell."""

    def question(name: str) -> Message:
        return Message("user", f"What is the number of {name}?")

    def draw(rng: random.Random) -> Problem:
        names = rng.sample(_NAMES[1:], 4)
        prompt = (*shot, question(names[0]))
        example = Example(prompt=prompt, columns={"names": names})
        return Problem(names[0], example)

    shot = (
        Message("system", "Search with <search></search>. Answer with <answer></answer>."),
        question(_NAMES[0]),
        Message("assistant", f"<search>{_NAMES[0]}</search>"),
        Message("user", f"{_NAMES[0]}: 512"),
        Message("assistant", "<answer>512</answer>"),
    )
    return _task(config, draw, shots=(_NAMES[0],), environment="lookup")


def _task(config: TaskConfig, draw: Draw, *, shots: tuple[str, ...], environment: str) -> Task:
    train, held = splits(draw, seed=config.seed, eval_size=config.eval_size, shots=shots)
    return Task(
        name=config.name,
        style=PromptStyle.chat,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=(),
        rewards=(RewardSpec("environment", "environment"),),
        success=succeeded,
        gold_completion=None,
        environment=EnvironmentSpec(environment),
    )


def succeeded(completion: Completion) -> bool:
    """Tell whether the environment counted a success in one of the turns."""
    episode = completion.episode
    return episode is not None and any(turn.info.get("success", 0.0) > 0 for turn in episode.turns)
