"""The advantage of a completion has two independent switches: baseline and scale."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.functional import (
    batch_mean_advantages,
    batch_std,
    divide_by_std,
    gdpo_advantages,
    group_mean_advantages,
    group_std,
    leave_one_out_advantages,
    spread_turns,
    turn_sums,
    turns_reached,
    turns_to_go,
)
from rlkit.schema import Options
from rlkit.types import RolloutBatch


class Baseline(StrEnum):
    """The number that is subtracted from the reward."""

    none = "none"
    group_mean = "group_mean"
    leave_one_out = "leave_one_out"
    batch_mean = "batch_mean"


class Scale(StrEnum):
    """The number that the centred reward is divided by."""

    none = "none"
    group_std = "group_std"
    batch_std = "batch_std"
    whiten = "whiten"
    whiten_tokens = "whiten_tokens"


class TurnCredit(StrEnum):
    """The rewards of an episode that a turn's tokens are credited with."""

    trajectory = "trajectory"
    to_go = "to_go"
    centred_to_go = "centred_to_go"
    own_turn = "own_turn"


class Combine(StrEnum):
    """The way in which several reward functions become one number."""

    sum = "sum"
    normalize_each = "normalize_each"


@dataclass(kw_only=True, slots=True)
class AdvantageConfig(Options):
    """Advantage = (reward - baseline) / (scale + eps)."""

    baseline: Baseline = Baseline.group_mean
    """none; group_mean (GRPO); leave_one_out (RLOO: unbiased at scale 1); batch_mean."""
    scale: Scale = Scale.group_std
    """none; group_std (GRPO); batch_std of the raw rewards (TRL `scale_rewards=batch`); whiten:
    z-score of the advantages over rows; whiten_tokens: over tokens, after KL in the advantage."""
    combine: Combine = Combine.sum
    """sum of weighted rewards; normalize_each: GDPO, which fixes baseline and scale itself."""
    eps: float = 1e-4
    """Added to the standard deviation, >= 0. TRL 1e-4, verl 1e-6."""
    bessel: bool = True
    """Divide squares by n - 1 (TRL, verl) instead of n."""
    turns: TurnCredit = TurnCredit.trajectory
    """trajectory: all turns get the episode's advantage; to_go: a turn gets the rewards from it on,
    compared among the samples that reached it. Both are unbiased with leave_one_out at scale none.
    centred_to_go (rewards centred turn by turn, then summed) and own_turn are not, when the policy
    decides how many turns there are."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.eps < float("inf"):
            raise ValueError(f"algorithm.advantage.eps must be >= 0, got {self.eps}")
        if self.combine is Combine.normalize_each and (
            self.baseline is not Baseline.group_mean or self.scale is not Scale.group_std
        ):
            raise ValueError(
                "algorithm.advantage.combine=normalize_each is a group z-score by definition: "
                "set baseline=group_mean and scale=group_std, "
                f"got baseline={self.baseline}, scale={self.scale}"
            )
        if self.turns is not TurnCredit.trajectory:
            self._check_turns()

    def _check_turns(self) -> None:
        if self.combine is Combine.normalize_each:
            raise ValueError(
                "algorithm.advantage.turns must be trajectory with combine=normalize_each, which "
                f"knows rewards of whole episodes only, got {self.turns}"
            )
        if self.baseline is Baseline.leave_one_out and self.scale is Scale.group_std:
            raise ValueError(
                "algorithm.advantage.scale must not be group_std with baseline=leave_one_out and "
                f"turns={self.turns}: a sample that reaches a turn alone has nothing to be "
                "divided by; set scale=none"
            )


def check_group_size(cfg: AdvantageConfig, group_size: int) -> None:
    """Raise ValueError when baseline or scale has nothing to compare within a group."""
    grouped = cfg.baseline in (Baseline.group_mean, Baseline.leave_one_out)
    if group_size < 2 and (grouped or cfg.scale is Scale.group_std):
        raise ValueError(
            f"algorithm.group_size must be >= 2 with algorithm.advantage.baseline={cfg.baseline} "
            f"and scale={cfg.scale}, got {group_size}; use baseline=batch_mean, scale=whiten"
        )


def row_advantages(cfg: AdvantageConfig, rollout: RolloutBatch, rewards: Tensor) -> Tensor:
    """Return one advantage a row, 0 for rows without a reward; `rewards` are the shaped ones."""
    if cfg.combine is Combine.normalize_each:
        return gdpo_advantages(
            rollout.reward_components,
            rollout.reward_weights,
            rollout.group_ids,
            eps=cfg.eps,
            bessel=cfg.bessel,
        )
    centered = _center(cfg.baseline, rewards, rollout.group_ids)
    return _scaled(cfg, centered, rewards, rollout.group_ids)


def turn_advantages(
    cfg: AdvantageConfig, rollout: RolloutBatch, token_rewards: Tensor
) -> Float[Tensor, "B C"]:
    """Return one advantage a turn, at all of its sampled tokens.

    Baseline and scale compare a turn with the same turn of the group's other samples. Nothing else
    of them is known at that point of an episode which does not depend on how it goes on.

    Args:
        cfg: Says which rewards count for a turn, its baseline and its scale.
        rollout: The samples, with the turns of their tokens.
        token_rewards: (B, C) shaped rewards, wherever in its turn a reward stands.
    """
    mask = rollout.completion_mask
    ids = torch.zeros_like(rollout.completion_ids) if rollout.turn_ids is None else rollout.turn_ids
    sums, reached = turn_sums(token_rewards, ids, mask), turns_reached(ids, mask)
    sums = sums.masked_fill(rollout.rewards.isnan()[:, None], torch.nan)
    numbers = torch.arange(sums.shape[1], device=sums.device)
    groups = (rollout.group_ids[:, None] * sums.shape[1] + numbers)[reached]
    if cfg.turns is TurnCredit.to_go:
        sums = turns_to_go(sums)
    values = sums[reached]
    centered = _center(cfg.baseline, values, groups)
    if cfg.baseline is Baseline.leave_one_out:
        # Nobody else came this far. A baseline of 0 is unbiased; an advantage of 0 would not be.
        centered = torch.where(_is_alone(values, groups), values.nan_to_num(nan=0.0), centered)
    if cfg.turns is TurnCredit.centred_to_go:
        centered = turns_to_go(sums.new_zeros(sums.shape).masked_scatter(reached, centered))
        centered = centered[reached]
    units = _scaled(cfg, centered, values, groups)
    return spread_turns(sums.new_zeros(sums.shape).masked_scatter(reached, units), ids, mask)


def _is_alone(values: Tensor, groups: Tensor) -> Tensor:
    """Tell which units are the only scored ones of their group."""
    _, index = torch.unique(groups, return_inverse=True)
    count = torch.zeros_like(groups).index_add_(0, index, (~values.isnan()).long())
    return count[index] == 1


def _scaled(cfg: AdvantageConfig, centered: Tensor, rewards: Tensor, group_ids: Tensor) -> Tensor:
    match cfg.scale:
        case Scale.group_std:
            std = group_std(rewards, group_ids, bessel=cfg.bessel)
        case Scale.batch_std:
            std = batch_std(rewards, bessel=cfg.bessel)
        case Scale.whiten:
            scored = centered.masked_fill(rewards.isnan(), torch.nan)
            centered = batch_mean_advantages(scored)
            std = batch_std(scored, bessel=cfg.bessel)
        case _:
            return centered
    return divide_by_std(centered, std, eps=cfg.eps)


def _center(baseline: Baseline, rewards: Tensor, group_ids: Tensor) -> Tensor:
    match baseline:
        case Baseline.group_mean:
            return group_mean_advantages(rewards, group_ids)
        case Baseline.leave_one_out:
            return leave_one_out_advantages(rewards, group_ids)
        case Baseline.batch_mean:
            return batch_mean_advantages(rewards)
        case _:
            return torch.nan_to_num(rewards, nan=0.0)
