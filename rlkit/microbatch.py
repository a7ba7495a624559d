"""Micro-batches under a token budget. Losses are sums over global counts: splits are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.types import RolloutBatch


def microbatches(
    batch: RolloutBatch, *, max_tokens: int, rows_per_unit: int = 1, share_prompts: bool = True
) -> list[Tensor]:
    """Row indices of each micro-batch; together they hold every row once, in order.

    Units of `rows_per_unit` adjacent rows stay together. A micro-batch takes the next unit while
    its tokens are at most `max_tokens`; a longer unit gets a micro-batch of its own: the budget
    never drops a row. Tokens are those of the prompts and completions, without padding; with
    `share_prompts` the prompt of rows of one group in one micro-batch counts once, as it is
    computed.

    `max_tokens` 0 = one micro-batch, whatever its size.
    Raises ValueError when the number of rows is not a multiple of `rows_per_unit`.
    """
    num_rows = len(batch)
    if num_rows % rows_per_unit:
        raise ValueError(f"{num_rows} rows do not split into units of {rows_per_unit}")
    if max_tokens == 0:
        return [torch.arange(num_rows)]
    columns = (batch.prompt_mask.sum(1), batch.completion_mask.sum(1), batch.group_ids)
    rows = torch.stack(columns, dim=1).tolist()
    starts: list[int] = []
    used, groups = 0, set[int]()
    for first in range(0, num_rows, rows_per_unit):
        unit = rows[first : first + rows_per_unit]
        added = _tokens(unit, groups if share_prompts else None)
        if not starts or used + added > max_tokens:
            starts.append(first)
            used, groups = 0, set()
            added = _tokens(unit, groups if share_prompts else None)
        used += added
    return list(torch.arange(num_rows).tensor_split(starts[1:]))


def _tokens(unit: list[list[int]], groups: set[int] | None) -> int:
    """Tokens that `unit` adds to a micro-batch which has the prompts of `groups`; adds its own."""
    total = 0
    for prompt, completion, group in unit:
        total += completion
        if groups is None or group not in groups:
            total += prompt
        if groups is not None:
            groups.add(group)
    return total
