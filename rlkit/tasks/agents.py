"""These generated tasks of several turns are small enough for a 135M model on a CPU."""

from __future__ import annotations

import random
from string import ascii_uppercase

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
_TENS = 1000
"""The ranges are 11 to 17, 21 to 27 and so on, below this many tens. All of a range share their
tens, so that halving it needs no carrying, which a small model cannot do."""


def calculator(config: CalculatorConfig) -> Task:
    """Make a task of products that are too large to know, with a calculator."""
    low, high = 10 ** (config.digits - 1), 10**config.digits

    def question(a: int, b: int) -> Message:
        return Message("user", f"What is {a} * {b}?")

    def shot(a: int, b: int) -> tuple[Message, ...]:
        return (
            question(a, b),
            Message("assistant", f"<calc>{a} * {b}</calc>"),
            Message("user", str(a * b)),
            Message("assistant", f"<answer>{a * b}</answer>"),
        )

    def draw(rng: random.Random) -> Problem:
        a, b = rng.randrange(low, high), rng.randrange(low, high)
        example = Example(prompt=(*begun, question(a, b)), columns={"answer": str(a * b)})
        return Problem(_product(a, b), example)

    system = Message("system", "First write <calc></calc>. Then write <answer></answer>.")
    begun = (system, *shot(127, 346), *shot(851, 209))
    shots = (_product(127, 346), _product(851, 209))
    return _task(config, draw, shots=shots, environment="calculator")


def _product(a: int, b: int) -> str:
    return ",".join(map(str, sorted((a, b))))


def guess_number(config: GuessNumberConfig) -> Task:
    """Make a task of finding a number with as few guesses as halving the range takes."""

    def question(low: int) -> Message:
        return Message(
            "user",
            f"I think of a number from {low} to {low + _SPAN - 1}. Guess it with <guess></guess>.",
        )

    def draw(rng: random.Random) -> Problem:
        low = 10 * rng.randrange(1, _TENS) + 1
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
        names = [f"{name} {rng.choice(ascii_uppercase)}" for name in rng.sample(_NAMES, 4)]
        prompt = (*begun, question(names[0]))
        return Problem(names[0], Example(prompt=prompt, columns={"names": names}))

    def shot(name: str, number: int) -> tuple[Message, ...]:
        return (
            question(name),
            Message("assistant", f"<search>{name}</search>"),
            Message("user", f"{name}: {number}"),
            Message("assistant", f"<answer>{number}</answer>"),
        )

    system = Message("system", "First write <search></search>. Then write <answer></answer>.")
    shots = (f"{_NAMES[0]} K", f"{_NAMES[1]} T")
    begun = (system, *shot(shots[0], 512), *shot(shots[1], 870))
    return _task(config, draw, shots=shots, environment="lookup")


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
