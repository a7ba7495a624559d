"""The aggregation switch says how per-token losses become a scalar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from torch import Tensor

from rlkit.functional import (
    constant_length_mean,
    microbatch_token_mean,
    sequence_mean,
    sequence_sum,
    token_mean,
)
from rlkit.types import Setting, TrainBatch


class Aggregation(StrEnum):
    """This makes per-token losses a scalar; its formulas are in `rlkit.functional.aggregation`."""

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    sequence_sum = "sequence_sum"
    constant_length = "constant_length"
    microbatch_token_mean = "microbatch_token_mean"


Aggregate = Callable[[Tensor, TrainBatch], Tensor]


def aggregate_of(kind: Aggregation, setting: Setting) -> Aggregate:
    """Return the function from per-token losses and their batch to the scalar that `kind` names.

    Raises ValueError when the value would depend on how the run splits a batch.
    """
    if kind is Aggregation.microbatch_token_mean and setting.microbatched:
        raise ValueError(
            "algorithm.aggregation=microbatch_token_mean depends on how a batch is split: set "
            "algorithm.aggregation=token_mean, its value on an unsplit batch, or "
            "memory=unsplit"
        )
    length = setting.max_completion_length
    table: Mapping[Aggregation, Aggregate] = {
        Aggregation.token_mean: lambda x, b: token_mean(x, b.loss_mask, b.num_tokens),
        Aggregation.sequence_mean: lambda x, b: sequence_mean(x, b.loss_mask, b.num_sequences),
        Aggregation.sequence_sum: lambda x, b: sequence_sum(x, b.loss_mask, b.num_sequences),
        Aggregation.constant_length: lambda x, b: constant_length_mean(
            x, b.loss_mask, b.num_sequences, length
        ),
        Aggregation.microbatch_token_mean: lambda x, b: microbatch_token_mean(
            x, b.loss_mask, b.num_sequences
        ),
    }
    return table[kind]
