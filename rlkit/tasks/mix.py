"""A mixture is several tasks in one: which part an example is of is a function of its index alone.

A cycle of a thousand places holds each part as often as its weight says, in a fixed random order.
So every thousand examples have the exact shares. What a part gives at some place needs no memory of
what came before, and a resumed run reads on as if nothing had happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from rlkit.rewards import RewardSpec
from rlkit.rewards.parts import OF_PART, PART
from rlkit.tasks.base import Example, Split, SplitName, Task
from rlkit.tasks.config import TaskConfig
from rlkit.tasks.curriculum import Curriculum
from rlkit.tasks.more_config import CurriculumKind, MixConfig
from rlkit.tasks.order import train_indices
from rlkit.tasks.task_options import task_of
from rlkit.types import Completion

_CYCLE = 1000
_T = TypeVar("_T")


class _Slot(NamedTuple):
    part: str
    rank: int
    """How many places of the cycle before this one are of the same part."""


def mix(config: MixConfig, build: Callable[[TaskConfig], Task]) -> Task:
    """Make one task of several, all of the same stop strings.

    Args:
        config: The parts with their weights.
        build: Makes the task of each part.

    Returns:
        The mixture. Each example has the column `part`, and each part its own rewards.

    Raises:
        ValueError: There are fewer than two parts, they do not fit together, or one is wrong.
    """
    if len(config.parts) < 2:
        raise ValueError(
            f"task.parts must hold two tasks or more, got {', '.join(config.parts) or 'none'}"
        )
    options = {name: _options(name, value) for name, value in config.parts.items()}
    parts = {name: build(chosen) for name, (chosen, _) in options.items()}
    _check(config, parts)
    weights = {name: weight for name, (_, weight) in options.items()}
    success = _by_part({name: task.success for name, task in parts.items()})
    curriculum = _curriculum(config, weights, parts, success)
    if curriculum is None:
        read = _reader(config.seed, parts, _quotas(weights))
    else:
        read = _by_place(curriculum, parts)
    first = next(iter(parts.values()))
    return Task(
        name=config.name,
        style=first.style,
        train=Split(SplitName.train, read, None),
        eval=_held_out(parts, config.eval_size),
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=first.stop,
        rewards=tuple(s for name, task in parts.items() for s in _rewards(name, task)),
        success=success,
        curriculum=curriculum,
        gold_completion=_of_example({n: task.gold_completion for n, task in parts.items()}),
        answer=_by_part({name: task.answer for name, task in parts.items()}),
        target=_of_example({n: t.target or t.gold_completion for n, t in parts.items()}),
    )


def _options(name: str, value: object) -> tuple[TaskConfig, float]:
    key = f"task.parts.{name}"
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} must hold the name of a task and its options, got {value}")
    chosen = task_of({k: v for k, v in value.items() if k != "weight"}, key=key)
    if isinstance(chosen, MixConfig):
        raise ValueError(f"{key}.name must be a task that is no mixture, got mix")
    return chosen, float(value.get("weight", 1.0))


def _check(config: MixConfig, parts: Mapping[str, Task]) -> None:
    (first, one), *others = parts.items()
    for name, task in others:
        for what in ("stop", "style"):
            mine, theirs = getattr(task, what), getattr(one, what)
            if mine != theirs:
                raise ValueError(
                    f"task.parts must agree in {what}, got {theirs!r} in {first} and {mine!r} in "
                    f"{name}"
                )
    for name, task in parts.items():
        for limit in ("max_prompt_length", "max_completion_length"):
            most, value = getattr(config, limit), getattr(task, limit)
            if value > most:
                raise ValueError(
                    f"task.parts.{name}.{limit} must be <= task.{limit}={most}, got {value}"
                )


def _quotas(weights: Mapping[str, float]) -> dict[str, int]:
    """Return the places of each part in a cycle, by the largest remainders; each has one."""
    total = sum(weights.values())
    exact = {name: _CYCLE * weight / total for name, weight in weights.items()}
    quotas = {name: max(1, int(share)) for name, share in exact.items()}
    by_rest = sorted(exact, key=lambda name: quotas[name] - exact[name])
    for i in range(_CYCLE - sum(quotas.values())):
        quotas[by_rest[i % len(by_rest)]] += 1
    while (excess := sum(quotas.values()) - _CYCLE) > 0:
        largest = max(quotas, key=lambda name: quotas[name])
        quotas[largest] -= excess
    return quotas


def _reader(
    seed: int, parts: Mapping[str, Task], quotas: Mapping[str, int]
) -> Callable[[int], Example]:
    order = [name for name, quota in quotas.items() for _ in range(quota)]
    random.Random(f"{seed}:mix").shuffle(order)
    seen = dict.fromkeys(quotas, 0)
    cycle = []
    for name in order:
        cycle.append(_Slot(name, seen[name]))
        seen[name] += 1

    def get(index: int) -> Example:
        rounds, place = divmod(index, _CYCLE)
        part, rank = cycle[place]
        position = rounds * quotas[part] + rank
        split = parts[part].train
        if split.size is not None:  # a fresh permutation in each of the part's epochs
            (position,) = train_indices(seed, position, 1, split.size)
        return _marked(split.get(position), part)

    return get


def _curriculum(
    config: MixConfig,
    weights: Mapping[str, float],
    parts: Mapping[str, Task],
    success: Callable[[Completion], bool] | None,
) -> Curriculum | None:
    if config.curriculum is CurriculumKind.none:
        return None
    if success is None:
        unknown = [name for name, task in parts.items() if task.success is None]
        raise ValueError(
            "task.curriculum must be none unless every part knows what a right answer is, got "
            f"{config.curriculum} with {unknown[0]}"
        )
    sizes = {name: task.train.size for name, task in parts.items()}
    floor = config.curriculum_floor
    return Curriculum(weights=weights, sizes=sizes, success=success, floor=floor)


def _by_place(curriculum: Curriculum, parts: Mapping[str, Task]) -> Callable[[int], Example]:
    def get(index: int) -> Example:
        part, number = curriculum.place(index)
        return _marked(parts[part].train.get(number), part)

    return get


def _held_out(parts: Mapping[str, Task], size: int) -> Split:
    """Return held-out examples of all parts in turn, as many of each as there are."""
    found: list[Example] = []
    longest = max(task.eval.size or 0 for task in parts.values())
    for index in range(longest):
        for name, task in parts.items():
            if index < (task.eval.size or 0) and len(found) < size:
                found.append(_marked(task.eval.get(index), name))
    return Split(SplitName.eval, found.__getitem__, len(found))


def _marked(example: Example, part: str) -> Example:
    return replace(example, columns={**example.columns, PART: part})


def _rewards(part: str, task: Task) -> list[RewardSpec]:
    return [
        RewardSpec(
            f"{part}_{spec.name}",
            OF_PART,
            spec.weight,
            {"part": part, "fn": spec.fn, "options": dict(spec.options)},
        )
        for spec in task.rewards
    ]


def _by_part(
    functions: Mapping[str, Callable[[Completion], _T] | None],
) -> Callable[[Completion], _T] | None:
    """Return the function that asks the part's own; None where a part has none."""
    known = {name: function for name, function in functions.items() if function is not None}
    if len(known) < len(functions):
        return None
    return lambda completion: known[str(completion.prompt.columns[PART])](completion)


def _of_example(
    functions: Mapping[str, Callable[[Example], str] | None],
) -> Callable[[Example], str] | None:
    known = {name: function for name, function in functions.items() if function is not None}
    if len(known) < len(functions):
        return None
    return lambda example: known[str(example.columns[PART])](example)
