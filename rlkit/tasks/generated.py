"""This module splits problems that are drawn at random, so that none is in both halves."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection
from typing import NamedTuple

from rlkit.tasks.base import Example, Message, Split, SplitName

EVAL_SHARE = 0.25
_MAX_DRAWS = 10_000
_DRAWS_PER_EVAL_EXAMPLE = 40


class Problem(NamedTuple):
    """This is a random problem."""

    key: str
    """Equal for problems that should not be in both halves, such as 3 + 5 and 5 + 3."""
    example: Example


Draw = Callable[[random.Random], Problem]


def splits(draw: Draw, *, seed: int, eval_size: int, shots: Collection[str]) -> tuple[Split, Split]:
    """Return the endless train split and the finite eval split of the problems that `draw` draws.

    A hash of (seed, key) assigns a quarter of all possible problems to the eval split. So the
    halves are disjoint whatever is drawn. Problems with keys in `shots`, the worked examples in the
    prompt, are in neither.

    Args:
        draw: Draws a problem from a generator of random numbers.
        seed: Decides which problems are held out and what is drawn, >= 0.
        eval_size: Most eval prompts, >= 1, all different; fewer when the task has no more.
        shots: Keys of the worked examples.

    Returns:
        The endless train split and the finite eval split.

    Raises:
        ValueError: The seed leaves nothing for one of the halves.
    """

    def train(index: int) -> Example:
        rng = random.Random(f"{seed}:{SplitName.train.value}:{index}")
        for _ in range(_MAX_DRAWS):
            problem = draw(rng)
            if problem.key not in shots and not held_out(problem.key, seed):
                return problem.example
        raise ValueError(f"task.seed must leave problems to train on, got {seed}")

    held: dict[str | tuple[Message, ...], Example] = {}
    rng = random.Random(f"{seed}:{SplitName.eval.value}")
    for _ in range(eval_size * _DRAWS_PER_EVAL_EXAMPLE):
        if len(held) == eval_size:
            break
        problem = draw(rng)
        if problem.key not in shots and held_out(problem.key, seed):
            held.setdefault(problem.example.prompt, problem.example)
    if not held:
        raise ValueError(f"task.seed must leave problems to evaluate on, got {seed}")
    examples = tuple(held.values())
    return (
        Split(SplitName.train, train, None),
        Split(SplitName.eval, examples.__getitem__, len(examples)),
    )


def held_out(key: str, seed: int, *, share: float = EVAL_SHARE) -> bool:
    """Return whether the problem `key` belongs to the eval split."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
