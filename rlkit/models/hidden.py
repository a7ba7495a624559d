"""Compute the hidden states before each completion token of a batch packed into one row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlkit.models.attention import take
from rlkit.models.layout import Packing, can_flash, packing_of
from rlkit.models.packing import PackedRow, pack
from rlkit.models.rope import row_lengths
from rlkit.types import RolloutBatch

_MAX_MASKED = 2**26
"""Scores under a mask in a row, 256 MiB in float32."""


class Scoring(NamedTuple):
    """A batch made ready for the forward passes of one model."""

    row: PackedRow
    packing: Packing


def prepare(
    config: PreTrainedConfig, batch: RolloutBatch, *, dtype: torch.dtype, share: bool
) -> Scoring:
    """Pack `batch` once for all adapters of a model.

    Args:
        config: The config of the model.
        batch: The rows to score.
        dtype: The dtype that the model computes in.
        share: Compute what prompts have in common once; equal up to rounding. Long completions
            after shared prompts need large masks without FlashAttention: there, rows stay whole.

    Returns:
        The packed row, and how its tokens attend to each other.

    Raises:
        ValueError: A prompt is empty.
    """
    row = pack(batch, share=share)
    if not can_flash(config, row.ids.device, dtype):
        masked = sum(s.own.length * s.num_keys for s in row.segments if s.before)
        row = row if masked <= _MAX_MASKED else pack(batch, share=False)
    return Scoring(row, packing_of(row, config, dtype))


def completion_states(backbone: nn.Module, scoring: Scoring) -> Tensor:
    """Return the (N, D) states from which the completion tokens are predicted, row by row.

    It works only inside `packed_attention`.
    """
    row, packing = scoring
    with row_lengths(backbone, row.lengths):
        states: Tensor = backbone(
            input_ids=row.ids[None],
            position_ids=row.positions[None],
            use_cache=False,
            packing=packing,
        ).last_hidden_state
    # Samples of a group are predicted from one state, that of their prompt's last token.
    return take(states[0], row.predictors)
