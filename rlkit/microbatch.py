"""Micro-batches under a token budget. Losses are sums over global counts: splits are exact."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def microbatches(
    prompt_mask: Bool[Tensor, "B P"],
    completion_mask: Bool[Tensor, "B C"],
    *,
    max_tokens: int,
    rows_per_unit: int = 1,
) -> list[Tensor]:
    """Row indices of each micro-batch; together they hold every row once.

    Units of `rows_per_unit` adjacent rows stay together. Units are sorted by length so that little
    is padded, and packed greedily while rows x longest row <= `max_tokens`. A unit longer than the
    budget gets a micro-batch of its own: the budget never drops a row.

    `max_tokens` 0 = one micro-batch, whatever its size.
    Raises ValueError when the number of rows is not a multiple of `rows_per_unit`.
    """
    lengths = (prompt_mask.sum(1) + completion_mask.sum(1)).cpu()
    if len(lengths) % rows_per_unit:
        raise ValueError(f"{len(lengths)} rows do not split into units of {rows_per_unit}")
    if max_tokens == 0:
        return [torch.arange(len(lengths))]
    units = lengths.view(-1, rows_per_unit).amax(1)
    plan: list[list[int]] = []
    for unit in torch.argsort(units, descending=True, stable=True).tolist():
        # Sorted by length: the first unit of a micro-batch is its longest.
        longest = int(units[plan[-1][0]]) if plan else 0
        if plan and (len(plan[-1]) + 1) * rows_per_unit * longest <= max_tokens:
            plan[-1].append(unit)
        else:
            plan.append([unit])
    offsets = torch.arange(rows_per_unit)
    return [(torch.tensor(sorted(p))[:, None] * rows_per_unit + offsets).flatten() for p in plan]
