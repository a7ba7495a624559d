"""This module makes tasks of reasoning-gym, tested with 0.1.25 (extra `rlkit-lm[reasoning]`).

Item i of its seed s + 1 is item i + 1 of its seed s, so two seeds share nearly all problems. The
halves are ranges of items of one seed, and a training item whose question is held out is replaced.
"""

from __future__ import annotations

import json
from typing import Any

from rlkit.rewards import RewardSpec
from rlkit.rewards.numbers import ballot
from rlkit.rewards.tags import first_answer
from rlkit.runtime.distribution import how_to_install
from rlkit.tasks.base import Example, Message, PromptStyle, Split, SplitName, Task
from rlkit.tasks.more_config import ReasoningGymConfig
from rlkit.types import Completion

_SIZE = 1 << 62
"""Items are made when they are asked for, so that their number costs nothing."""
_AWAY = 1 << 60
"""A held-out training item is replaced by one this far behind it."""
_MAX_TRIES = 100
_EVAL_TRIES = 40


def reasoning_gym(config: ReasoningGymConfig) -> Task:
    """Make a task of one data set of reasoning-gym.

    Raises ValueError when the library is missing, or knows no such data set or option.
    """
    items = _data_set(config)

    def example(index: int) -> Example:
        entry = items[index]
        system = (Message("system", config.system),) if config.system else ()
        columns = {"answer": entry["answer"], "entry": _as_json(entry)}
        return Example(prompt=(*system, Message("user", entry["question"])), columns=columns)

    held = _held_out(example, config.eval_size)
    known = {e.prompt for e in held}
    first = config.eval_size * _EVAL_TRIES

    def train(index: int) -> Example:
        for attempt in range(_MAX_TRIES):
            found = example(first + index + attempt * _AWAY // _MAX_TRIES)
            if found.prompt not in known:
                return found
        raise ValueError(
            f"task.eval_size must leave problems to train on, got {config.eval_size}: data set "
            f"{config.dataset} has too few"
        )

    return Task(
        name=config.name,
        style=PromptStyle.chat,
        train=Split(SplitName.train, train, None),
        eval=Split(SplitName.eval, held.__getitem__, len(held)),
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=(),
        rewards=(RewardSpec("reasoning_gym", "reasoning_gym"),),
        success=_is_right,
        gold_completion=lambda e: f"<answer>{e.columns['answer']}</answer>",
        answer=lambda completion: ballot(first_answer(completion.text)),
    )


def _held_out(example: Any, size: int) -> list[Example]:
    """Return the first `size` different items, of the range that training never reads."""
    found: dict[object, Example] = {}
    for index in range(size * _EVAL_TRIES):
        if len(found) == size:
            break
        item = example(index)
        found.setdefault(item.prompt, item)
    return list(found.values())


def _data_set(config: ReasoningGymConfig) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"task=reasoning_gym needs {how_to_install('reasoning_gym')}, got {error}"
        ) from error
    try:
        return reasoning_gym.create_dataset(
            config.dataset, seed=config.seed, size=_SIZE, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"task.dataset and task.options must be known to reasoning-gym, got {config.dataset} "
            f"and {config.options}: {reason}"
        ) from error


def _as_json(entry: Any) -> Any:
    """Return an entry as JSON values, which rewards need that run in other processes."""
    return json.loads(json.dumps(entry, default=str))


def _is_right(completion: Completion) -> bool:
    from rlkit.rewards.reasoning import reasoning_gym as score

    return score(completion) == 1.0
