"""Cut batches under a token budget. Losses are sums over global counts: splits are exact."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rlkit.ranks import ALONE, Ranks
from rlkit.ranks.deal import deal, deal_evenly
from rlkit.types import Algorithm, RolloutBatch, TrainBatch


def microbatches(
    batch: RolloutBatch,
    *,
    max_tokens: int,
    rows_per_unit: int = 1,
    share_prompts: bool = True,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    """Return row indices of each micro-batch; together they hold every row once, in order.

    There are as few micro-batches as `max_tokens` allows. Of these splits it is the one whose
    largest is least: a small rest would leave a device waiting for its next launch. A unit that is
    longer gets a micro-batch of its own: the budget never drops a row. Several ranks get as many
    micro-batches each, where the rows suffice.

    Args:
        batch: The rows.
        max_tokens: Tokens of prompts and completions, without padding; 0 = one micro-batch.
        rows_per_unit: Adjacent rows that stay together, >= 1.
        share_prompts: The prompt of rows of one group in one micro-batch counts once, as it is
            computed.
        ranks: The ranks that share the micro-batches; see `share_of`.

    Returns:
        Indices of rows, int64, on the CPU.

    Raises:
        ValueError: The number of rows is not a multiple of `rows_per_unit`.
    """
    num_rows = len(batch)
    if num_rows % rows_per_unit:
        raise ValueError(f"{num_rows} rows do not split into units of {rows_per_unit}")
    if max_tokens == 0 and ranks.size == 1:
        return [torch.arange(num_rows)]
    columns = (batch.prompt_mask.sum(1), batch.exists.sum(1), batch.group_ids)
    rows = torch.stack(columns, dim=1).tolist()
    units = [rows[i : i + rows_per_unit] for i in range(0, num_rows, rows_per_unit)]
    total = sum(prompt + completion for prompt, completion, _ in rows)
    most = min(max_tokens or total, total)
    fewest = len(_starts(units, most, share_prompts=share_prompts))
    fewest = min(-(-fewest // ranks.size) * ranks.size, len(units))
    budgets = range(most)
    # A smaller budget never gives fewer: the first that gives no more is found by halves.
    least = bisect_left(
        budgets, -fewest, key=lambda n: -len(_starts(units, n, share_prompts=share_prompts))
    )
    starts = _starts(units, least, share_prompts=share_prompts)
    return list(torch.arange(num_rows).tensor_split([i * rows_per_unit for i in starts[1:]]))


class Share(NamedTuple):
    """This is a micro-batch that a rank computes."""

    rows: Tensor
    """Indices of rows, int64, on the CPU."""
    counts: bool = True
    """False: another rank has these rows, and this one only keeps in step with it."""


def share_of(plan: Sequence[Tensor], batch: RolloutBatch, ranks: Ranks) -> list[Share]:
    """Return the micro-batches of `plan` that this rank computes, in their order.

    The longest go first, each to the rank that has the fewest tokens so far. All ranks find the
    same shares, because they have the same batch. Ranks in step get as many each; one that has too
    few computes the shortest of all again, for nothing.
    """
    if ranks.size == 1:
        return [Share(rows) for rows in plan]
    lengths = batch.prompt_mask.sum(1) + batch.exists.sum(1)
    tokens = [int(lengths[rows.to(lengths.device)].sum()) for rows in plan]
    owners = (deal_evenly if ranks.in_step else deal)(tokens, ranks.size)
    own = [Share(rows) for rows, owner in zip(plan, owners, strict=True) if owner == ranks.rank]
    if ranks.in_step and plan:
        missing = -(-len(plan) // ranks.size) - len(own)
        own += [Share(plan[tokens.index(min(tokens))], counts=False)] * missing
    return own


def _starts(units: list[list[list[int]]], max_tokens: int, *, share_prompts: bool) -> list[int]:
    """Return the first unit of each micro-batch, when each takes the next unit while it fits."""
    starts: list[int] = []
    used, groups = 0, set[int]()
    for i, unit in enumerate(units):
        added = _tokens(unit, groups if share_prompts else None)
        if not starts or used + added > max_tokens:
            starts.append(i)
            used, groups = 0, set()
            added = _tokens(unit, groups if share_prompts else None)
        used += added
    return starts


def _tokens(unit: list[list[int]], groups: set[int] | None) -> int:
    """Count the tokens that `unit` adds to a micro-batch with prompts of `groups`; add its own."""
    total = 0
    for prompt, completion, group in unit:
        total += completion
        if groups is None or group not in groups:
            total += prompt
        if groups is not None:
            groups.add(group)
    return total


class TrainRows(NamedTuple):
    """This is a micro-batch of an update."""

    rows: Tensor
    """Their indices, on the device of the batch."""
    with_gradient: bool
    """False: they are only measured."""
    counts: bool
    """As in `Share`."""


def train_microbatches(
    batch: TrainBatch,
    algorithm: Algorithm,
    *,
    max_tokens: int,
    share_prompts: bool,
    ranks: Ranks = ALONE,
) -> Iterator[TrainRows]:
    """Yield the rows of this rank's micro-batches of an update.

    Args:
        batch: The prepared rows.
        algorithm: The algorithm that learns from them.
        max_tokens: As in `microbatches`.
        share_prompts: As in `microbatches`.
        ranks: The ranks of the run.

    Yields:
        Rows; over all ranks every row counts once.
    """
    # A critic keeps a graph of its own beside the policy's until both run backward.
    num_graphs = 2 if algorithm.outputs.values else 1
    for rows, with_gradient in zip(_busy_and_idle(batch, algorithm), (True, False), strict=True):
        if len(rows) == 0:
            continue
        rollout = batch.rollout if len(rows) == len(batch) else batch.rollout.rows(rows)
        plan = microbatches(
            rollout,
            max_tokens=-(-max_tokens // num_graphs),
            rows_per_unit=algorithm.rows_per_unit,
            share_prompts=share_prompts,
            ranks=ranks,
        )
        for part in share_of(plan, rollout, ranks):
            index = rows[part.rows.to(rows.device)]
            yield TrainRows(index, with_gradient, part.counts)


def _busy_and_idle(batch: TrainBatch, algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    """Return the indices of rows that a gradient comes from, and of those that only are measured.

    The usual idle ones are groups of equal rewards, without a KL term in the loss. Two thirds of
    their work, and all of its memory, would be the gradient of nothing.
    """
    everything = torch.arange(len(batch), device=batch.advantages.device)
    if algorithm.idle is None or algorithm.rows_per_unit > 1:
        return everything, everything[:0]
    idle = algorithm.idle(batch)
    return everything[~idle], everything[idle]


def minibatches(batch: TrainBatch, *, num_minibatches: int, seed: int) -> Iterator[TrainBatch]:
    """Split `batch` by whole groups into `num_minibatches` batches, shuffled by `seed`.

    One minibatch is the batch itself, in its own order. Fewer groups than minibatches (a filter may
    have dropped some) give one minibatch a group.
    """
    if num_minibatches == 1:
        yield batch
        return
    ids = batch.rollout.group_ids
    groups: Int[Tensor, " groups"] = torch.unique(ids)
    shuffler = torch.Generator().manual_seed(seed)
    order = groups[torch.randperm(len(groups), generator=shuffler).to(groups.device)]
    for part in torch.tensor_split(order, min(num_minibatches, len(groups))):
        yield batch.minibatch(torch.isin(ids, part).nonzero().flatten())
