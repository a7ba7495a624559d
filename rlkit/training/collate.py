"""Make one padded `RolloutBatch` of ragged rollouts; nothing else in rlkit pads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.types import FinishReason, RolloutBatch, ScoredRollout


def collate(
    groups: Sequence[Sequence[ScoredRollout]],
    *,
    reward_weights: Sequence[float],
    pad_token_id: int,
    device: torch.device,
) -> RolloutBatch:
    """Return one batch of all samples: rows of a group adjacent, prompts padded on the left.

    Args:
        groups: Scored samples, group by group.
        reward_weights: The weight of each reward function, in the order of the components.
        pad_token_id: The id that fills the padding.
        device: The device of the batch.

    Returns:
        The batch; completions are padded on the right.

    Raises:
        ValueError: There is no sample, a reward is not finite, or lengths disagree.
    """
    samples = [sample for group in groups for sample in group]
    if not samples:
        raise ValueError("collate needs at least one rollout, got none")
    for sample in samples:
        _check(sample, num_rewards=len(reward_weights))
    prompts = [sample.rollout.prompt.ids for sample in samples]
    completions = [sample.rollout.completion_ids for sample in samples]
    logps = [sample.rollout.sampling_logps for sample in samples]
    prompt_ids, prompt_mask = _pad_left(prompts, pad_token_id)
    completion_ids, exists = _pad_right(completions, pad_token_id)
    turns = _turns(samples, exists)
    batch = RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=exists if turns is None else turns.sampled,
        sampling_logps=_filled(logps, exists, 0, torch.float32)
        if turns is None
        else _filled(logps, exists, 0, torch.float32).masked_fill(~turns.sampled, 0.0),
        rewards=torch.tensor([sample.reward for sample in samples]),
        reward_components=torch.tensor([sample.components for sample in samples]),
        reward_weights=torch.tensor(list(reward_weights)),
        group_ids=torch.tensor([i for i, group in enumerate(groups) for _ in group]),
        truncated=torch.tensor(
            [sample.rollout.finish_reason is FinishReason.length for sample in samples]
        ),
        policy_version=torch.tensor([sample.rollout.policy_version for sample in samples]),
        spliced=None if turns is None else exists & ~turns.sampled,
        turn_ids=None if turns is None else turns.ids,
        turn_rewards=None if turns is None else turns.rewards,
        restarts=None if turns is None or not turns.restarts.any() else turns.restarts,
    )
    return batch.to(device)


class _Turns(NamedTuple):
    """These are the columns of a batch with episodes, (B, C) each."""

    sampled: Tensor
    ids: Tensor
    rewards: Tensor
    restarts: Tensor


def _turns(samples: Sequence[ScoredRollout], exists: Tensor) -> _Turns | None:
    """Return where each turn was sampled and what it earned; None when no sample has turns."""
    if all(sample.rollout.episode is None for sample in samples):
        return None
    sampled = torch.zeros_like(exists)
    ids = torch.zeros(exists.shape, dtype=torch.long)
    rewards = torch.zeros(exists.shape)
    restarts = torch.zeros_like(exists)
    for row, sample in enumerate(samples):
        spans = sample.rollout.spans
        earned = sample.turn_rewards or (*[0.0] * (len(spans) - 1), sample.reward)
        for number, ((start, stop), reward) in enumerate(zip(spans, earned, strict=True)):
            sampled[row, start:stop] = True
            ids[row, start:stop] = number
            if stop > start:
                # A reward on a token that was not sampled would be lost to every recursion.
                rewards[row, stop - 1] = reward
        turns = () if sample.rollout.episode is None else sample.rollout.episode.turns
        for before, turn in pairwise(turns):
            restarts[row, before.stop] = turn.afresh
    return _Turns(sampled, ids, rewards, restarts)


def _check(sample: ScoredRollout, *, num_rewards: int) -> None:
    rollout = sample.rollout
    where = f"prompt {rollout.prompt.index}, sample {rollout.sample_index}"
    if len(rollout.completion_ids) != len(rollout.sampling_logps):
        raise ValueError(
            f"{where}: one sampling logp per completion token is needed, got "
            f"{len(rollout.sampling_logps)} for {len(rollout.completion_ids)} tokens"
        )
    end = 0
    for start, stop in rollout.spans if rollout.episode is not None else ():
        if not end <= start < stop <= len(rollout.completion_ids):
            raise ValueError(
                f"{where}: turns must follow each other with a sampled token each, got "
                f"{rollout.spans} for {len(rollout.completion_ids)} tokens"
            )
        end = stop
    if len(sample.components) != num_rewards:
        raise ValueError(f"{where}: {num_rewards} rewards expected, got {len(sample.components)}")
    # Targets have no reward at all; a reward of some functions alone is the collector's to drop.
    if not math.isfinite(sample.reward) and not all(map(math.isnan, sample.components)):
        raise ValueError(f"{where}: the reward must be finite, got {sample.reward}")


def _pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    places, lengths = _places(rows)
    mask = places >= places.shape[1] - lengths
    return _filled(rows, mask, pad, torch.long), mask


def _pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    places, lengths = _places(rows)
    mask = places < lengths
    return _filled(rows, mask, pad, torch.long), mask


def _places(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return (1, W) column numbers, at least one, and (B, 1) lengths."""
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    return torch.arange(max(1, int(lengths.max())))[None], lengths


def _filled(
    rows: Sequence[Sequence[int]] | Sequence[Sequence[float]],
    mask: Tensor,
    pad: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the numbers of `rows` where `mask` is True, in order, and `pad` elsewhere.

    They come from one flat list: nested ones take torch ten times as long.
    """
    numbers = torch.tensor(list(chain.from_iterable(rows)), dtype=dtype)
    return torch.full(mask.shape, pad, dtype=dtype).masked_scatter(mask, numbers)
