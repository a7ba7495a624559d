"""The training examples of a step are a pure function of the run seed and the step."""

from __future__ import annotations

import functools
import random

_STRETCH = 1 << 20


def train_indices(
    run_seed: int, step: int, prompts_per_step: int, size: int | None, *, attempt: int = 0
) -> list[int]:
    """Return the training examples of a step; nothing needs to be restored on resume.

    A finite split (`size` examples) is read in a fresh permutation each epoch. Batches cross from
    one epoch into the next, so every example comes once per epoch. An endless split is read in
    order, from a place of its own for each run seed (up to 2**20 examples).

    Args:
        run_seed: Seed of the run, >= 0.
        step: Step, >= 0.
        prompts_per_step: Examples to return, >= 1.
        size: Examples of the split; None means endless.
        attempt: Above 0 it gives further examples for the same step, in an order of their own.

    Returns:
        Indices of `prompts_per_step` examples, each >= 0.

    Raises:
        ValueError: The split is empty.
    """
    if size == 0:
        raise ValueError("the train split must hold an example, got none")
    first = step * prompts_per_step
    positions = range(first, first + prompts_per_step)
    if size is None:
        start = (run_seed + (attempt << 31)) * _STRETCH
        return [start + position for position in positions]
    return [
        _permutation(size, f"{run_seed}:{attempt}:{position // size}")[position % size]
        for position in positions
    ]


@functools.lru_cache(maxsize=4)  # shuffling a million indices takes a second
def _permutation(size: int, seed: str) -> tuple[int, ...]:
    indices = list(range(size))
    random.Random(seed).shuffle(indices)
    return tuple(indices)
