"""Hidden states before each completion token, with tokens that prompts share computed once.

Two ways give the same states and gradients:
- plain: every row as prompt + completion, padded on the right, causal attention, no mask;
- shared: what all prompts begin with once, the rest of each distinct prompt once, and then only the
  completions, each on top of the keys and values of what precedes it. Gradients flow through these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from rlkit.types import RolloutBatch

_MIN_PREFIX = 16
"""Shorter common prefixes are not worth a pass of their own."""
_MIN_SAVING = 0.25
"""Share of the plain way's tokens that sharing must save to be chosen."""


class SharedPrompts(NamedTuple):
    """The prompts of a batch, taken apart. U distinct prompts, Q tokens in the longest rest."""

    prefix_ids: Tensor
    """(prefix,) tokens that all prompts begin with; empty when too few or only one prompt."""
    rest_ids: Tensor
    """(U, Q) the remaining tokens of each distinct prompt, at least one, padded on the right."""
    rest_mask: Tensor
    """(U, Q)"""
    row_counts: Tensor
    """(U,) adjacent rows that have this prompt."""


def completion_states(backbone: nn.Module, batch: RolloutBatch, *, share: bool) -> Tensor:
    """(N, D) states from which the tokens under `completion_mask` are predicted, row by row.

    `share` forces the way; `worth_sharing` and `can_share` say when it pays and when it is exact.
    Raises ValueError when a prompt is empty: its first token has no state before it.
    """
    if not bool(batch.prompt_mask.any(dim=1).all()):
        raise ValueError("every prompt must have at least one token, got an empty one")
    return _shared(backbone, batch) if share else _plain(backbone, batch)


def worth_sharing(batch: RolloutBatch) -> bool:
    """Whether sharing saves a quarter of the padded tokens; depends on the batch alone."""
    prompts = split_prompts(batch)
    completion = int(batch.completion_mask.sum(1).max())
    num_rows = len(batch)
    plain = num_rows * (int(_lengths(batch).max()) - 1)
    shared = prompts.prefix_ids.numel() + prompts.rest_ids.numel() + num_rows * (completion - 1)
    return shared <= (1.0 - _MIN_SAVING) * plain


def can_share(config: PreTrainedConfig, batch: RolloutBatch) -> bool:
    """Whether sharing is exact: no attention window and no length-dependent rotary embedding.

    Masked cache entries between prompt and completion shift a window, which counts entries.
    """
    values = config.to_dict()
    window = values.get("sliding_window")
    fits = window is None or batch.prompt_ids.shape[1] + batch.completion_ids.shape[1] <= window
    return fits and not _rope_types(values) & {"dynamic", "longrope"}


def split_prompts(batch: RolloutBatch) -> SharedPrompts:
    """Take the prompts apart into common prefix and distinct rests; equal rows must be adjacent."""
    lengths = batch.prompt_mask.sum(1)
    packed = _shift_left(batch.prompt_ids, batch.prompt_mask.shape[1] - lengths)
    inside = torch.arange(packed.shape[1], device=packed.device) < lengths[:, None]
    packed = packed.masked_fill(~inside, -1)
    distinct, row_counts = torch.unique_consecutive(packed, dim=0, return_counts=True)
    agree = (distinct == distinct[0]).all(dim=0).long().cumprod(0)
    # One token less than the shortest prompt, so that every rest has a last token to predict from.
    prefix = min(int(agree.sum()), int(lengths.min()) - 1)
    if prefix < _MIN_PREFIX or distinct.shape[0] == 1:
        prefix = 0
    rest = distinct[:, prefix : int(lengths.max())]
    mask = rest >= 0
    return SharedPrompts(distinct[0, :prefix], rest.clamp(min=0), mask, row_counts)


def _plain(backbone: nn.Module, batch: RolloutBatch) -> Tensor:
    prompt_lengths = batch.prompt_mask.sum(1)
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    ids = _shift_left(ids, batch.prompt_mask.shape[1] - prompt_lengths)
    # The last token predicts nothing that is scored; padding on the right is never attended to.
    width = max(int(_lengths(batch).max()) - 1, 1)
    states = backbone(input_ids=ids[:, :width], use_cache=False).last_hidden_state
    rows, steps = batch.completion_mask.nonzero(as_tuple=True)
    return _rows_of(states, rows, prompt_lengths[rows] - 1 + steps)


def _shared(backbone: nn.Module, batch: RolloutBatch) -> Tensor:
    prompts = split_prompts(batch)
    num_prompts = prompts.rest_ids.shape[0]
    prefix = prompts.prefix_ids.numel()
    cache = DynamicCache()
    if prefix:
        _extend(backbone, cache, prompts.prefix_ids[None], positions=None, key_mask=None)
        _repeat_rows(cache, prompts.row_counts.new_tensor([num_prompts]))
    rest_lengths = prompts.rest_mask.sum(1)
    steps = torch.arange(prompts.rest_ids.shape[1], device=rest_lengths.device)
    rest = _extend(
        backbone,
        cache,
        prompts.rest_ids,
        positions=prefix + steps.expand_as(prompts.rest_ids),
        key_mask=_after_ones(prefix, prompts.rest_mask) if prefix else None,
    )
    before = _rows_of(rest, torch.arange(num_prompts, device=steps.device), rest_lengths - 1)
    before = _repeat(before, prompts.row_counts)
    completion_mask = batch.completion_mask[:, : max(int(batch.completion_mask.sum(1).max()), 1)]
    states = before[:, None]
    if completion_mask.shape[1] > 1:
        _repeat_rows(cache, prompts.row_counts)
        inputs = batch.completion_ids[:, : completion_mask.shape[1] - 1]
        steps = torch.arange(inputs.shape[1], device=steps.device)
        rest_mask = _repeat(prompts.rest_mask, prompts.row_counts)
        after = _extend(
            backbone,
            cache,
            inputs,
            positions=batch.prompt_mask.sum(1)[:, None] + steps,
            key_mask=_after_ones(prefix, rest_mask, torch.ones_like(inputs, dtype=torch.bool)),
        )
        states = torch.cat([states, after], dim=1)
    return _rows_of(states, *completion_mask.nonzero(as_tuple=True))


def _extend(
    backbone: nn.Module,
    cache: DynamicCache,
    ids: Tensor,
    *,
    positions: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """Run `ids` on top of `cache`, which grows; (B, T, D) states. `key_mask` None = all keys."""
    states: Tensor = backbone(
        input_ids=ids,
        position_ids=positions,
        attention_mask=None if key_mask is None else _causal_bias(backbone, key_mask, ids.shape[1]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states


def _causal_bias(backbone: nn.Module, key_mask: Tensor, num_queries: int) -> Tensor:
    """(B, 1, T, keys) additive mask: the last T keys are the queries' own, in order.

    Made once for all layers; from a boolean mask attention would make, and keep, one per layer.
    """
    dtype = next(backbone.parameters()).dtype
    num_rows, num_keys = key_mask.shape
    query = torch.arange(num_keys - num_queries, num_keys, device=key_mask.device)
    key = torch.arange(num_keys, device=key_mask.device)
    seen = (key <= query[:, None]) & key_mask[:, None, None, :]
    # CUDA's attention kernels copy a mask whose rows are not aligned to 16 elements, per layer.
    aligned = -(-num_keys // 16) * 16
    bias = torch.zeros(num_rows, 1, num_queries, aligned, dtype=dtype, device=key_mask.device)
    return bias[..., :num_keys].masked_fill_(~seen, torch.finfo(dtype).min)


def _repeat_rows(cache: DynamicCache, counts: Tensor) -> None:
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise TypeError(f"expected a filled DynamicLayer, got {type(layer).__name__}")
        layer.keys, layer.values = _repeat(layer.keys, counts), _repeat(layer.values, counts)


def _repeat(x: Tensor, counts: Tensor) -> Tensor:
    """Row i of `x` counts[i] times, in order; equal counts have a deterministic gradient."""
    first = int(counts[0])
    if bool((counts == first).all()):
        return x[:, None].expand(-1, first, *x.shape[1:]).flatten(0, 1)
    return x.repeat_interleave(counts, dim=0)


def _after_ones(num_ones: int, *masks: Tensor) -> Tensor:
    ones = masks[0].new_ones(masks[0].shape[0], num_ones)
    return torch.cat([ones, *masks], dim=1)


def _rows_of(states: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
    """states[rows, steps] of (B, T, D); no pair occurs twice, so the gradient is deterministic."""
    return states.flatten(0, 1).index_select(0, rows * states.shape[1] + steps)


def _lengths(batch: RolloutBatch) -> Tensor:
    return batch.prompt_mask.sum(1) + batch.completion_mask.sum(1)


def _shift_left(ids: Tensor, by: Tensor) -> Tensor:
    """Row i of `ids` moved by[i] places to the left; what is moved in on the right is arbitrary."""
    columns = torch.arange(ids.shape[1], device=ids.device) + by[:, None]
    return ids.gather(1, columns.clamp(max=ids.shape[1] - 1))


def _rope_types(values: object) -> set[str]:
    """Every `rope_type` in a nested config."""
    if not isinstance(values, dict):
        return set()
    own = {str(values["rope_type"])} if "rope_type" in values else set()
    return own.union(*(_rope_types(value) for value in values.values()))
