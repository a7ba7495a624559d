"""A device that runs out of memory gets smaller micro-batches: the gradient stays what it was.

Losses are sums over a batch's global counts, so a split changes no number beyond its last bits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from rlkit.types import RolloutBatch

Result = TypeVar("Result")


class Fitted(NamedTuple):
    """The tokens of a micro-batch that fitted, by what divides the budget."""

    divisor: int
    """1 or a power of 2."""
    retries: int
    """Times that memory ran out."""


def within_memory(
    work: Callable[[int], Result], *, budget: int, batch: RolloutBatch, divisor: int
) -> tuple[Result, Fitted]:
    """Return what `work` returns; each time that memory runs out, micro-batches get half as large.

    Args:
        work: Takes the tokens of a micro-batch, 0 = one micro-batch; it must start from nothing.
        budget: The tokens of a micro-batch that the plan allows, >= 0; 0 = one micro-batch.
        batch: The rows that it splits.
        divisor: What divided the budget before, >= 1.

    Returns:
        The result, and the divisor it took.

    Raises:
        torch.OutOfMemoryError: Rows do not fit even one by one.
    """
    retries = 0
    while True:
        tokens = budget if divisor == 1 else _divided(budget, batch, divisor)
        try:
            return work(tokens), Fitted(divisor, retries)
        except torch.OutOfMemoryError:
            if 0 < tokens <= _shortest(batch):
                raise
        # Out of the handler: its traceback held the frames of `work`, and these their tensors.
        divisor *= 2
        retries += 1
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def say_smaller(step: int, divisor: int) -> str:
    """Return one line about micro-batches that got smaller in `step`."""
    return (
        f"the device ran out of memory in step {step}: micro-batches have 1/{divisor} of the "
        "planned tokens from here on, with the same gradient"
    )


def _divided(budget: int, batch: RolloutBatch, divisor: int) -> int:
    whole = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    return max(1, min(budget or whole, whole) // divisor)


def _shortest(batch: RolloutBatch) -> int:
    return int((batch.prompt_mask.sum(1) + batch.completion_mask.sum(1)).min())
