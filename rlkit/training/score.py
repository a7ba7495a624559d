"""Score a rollout batch before its updates: columns that the algorithm needs, without gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rlkit.runtime.garbage import garbage_waits
from rlkit.training.learner import Learner
from rlkit.training.microbatch import microbatches, share_of
from rlkit.training.sums import whole_columns
from rlkit.training.update import UpdateSettings
from rlkit.types import Algorithm, Column, OutputSpec, RolloutBatch


@garbage_waits()
def score(
    learner: Learner, batch: RolloutBatch, algorithm: Algorithm, settings: UpdateSettings
) -> RolloutBatch:
    """Return `batch` with the columns that the algorithm needs, computed without gradients.

    Args:
        learner: The policy.
        batch: The rows.
        algorithm: Its `needs` name the columns.
        settings: The split into micro-batches and the temperature.

    Returns:
        The same rows; columns that are not needed are None.
    """
    filled = settings.ranks.together(partial(_own_columns, learner, batch, algorithm, settings))
    columns = whole_columns(filled, algorithm.needs, batch.sampling_logps, settings.ranks)
    return replace(
        batch,
        old_logps=columns.get(Column.old_logps),
        ref_logps=columns.get(Column.ref_logps),
        values=columns.get(Column.values),
    )


def _own_columns(
    learner: Learner, batch: RolloutBatch, algorithm: Algorithm, settings: UpdateSettings
) -> dict[Column, Tensor]:
    """Return the columns with the rows of this rank; the others are 0."""
    filled: dict[Column, Tensor] = {}
    plan = microbatches(
        batch,
        max_tokens=settings.tokens_per_microbatch,
        share_prompts=settings.share_prompts,
        ranks=settings.ranks,
    )
    wanted = OutputSpec(values=Column.values in algorithm.needs)
    temperature = settings.temperature
    with torch.no_grad():
        for rows, counts in share_of(plan, batch, settings.ranks):
            index = rows.to(batch.prompt_ids.device)
            micro = batch.rows(index)
            found: dict[Column, Tensor | None] = {}
            if algorithm.needs & {Column.old_logps, Column.values}:
                output = learner.forward(
                    micro, adapter=learner.adapter, temperature=temperature, spec=wanted
                )
                found |= {Column.old_logps: output.logps, Column.values: output.values}
            if Column.ref_logps in algorithm.needs:
                reference = learner.forward(
                    micro, adapter=None, temperature=temperature, spec=OutputSpec()
                )
                found[Column.ref_logps] = reference.logps
            for column in algorithm.needs if counts else ():
                value = found[column]
                if value is None:
                    raise RuntimeError(f"the policy returned no {column.value}")
                if column not in filled:
                    filled[column] = value.new_zeros(batch.completion_mask.shape)
                filled[column][index] = value
    return filled
