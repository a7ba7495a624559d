"""What every algorithm's configuration shares, and the objective they are composed into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.algorithms.correction import CorrectionConfig
from rlkit.algorithms.kl import KLConfig
from rlkit.algorithms.ratio import RatioConfig
from rlkit.functional import aggregation as F
from rlkit.functional.advantages import informative_groups
from rlkit.functional.shaping import overlong_penalty
from rlkit.types import RolloutBatch, Setting, TrainBatch


class Aggregation(StrEnum):
    """From per-token losses to a scalar; formulas in `rlkit.functional.aggregation`."""

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    sequence_sum = "sequence_sum"
    constant_length = "constant_length"
    microbatch_token_mean = "microbatch_token_mean"


class GroupFilter(StrEnum):
    """What happens to groups whose rewards are all equal."""

    none = "none"
    mask = "mask"
    resample = "resample"


@dataclass(kw_only=True, slots=True)
class AlgorithmConfig:
    """Fields of every algorithm."""

    group_size: int = 8
    """Completions sampled per prompt, >= 1. DeepSeekMath 64, TRL 8."""
    group_filter: GroupFilter = GroupFilter.none
    """none; mask: groups of equal rewards leave the loss and its denominators; resample: the
    trainer samples other prompts in their place (DAPO's dynamic sampling)."""
    mask_truncated: bool = False
    """Leave completions that hit the length limit out of the loss (DAPO's overlong filtering)."""
    overlong_fraction: float = 0.0
    """Soft length penalty over the last share of the limit, in [0, 1]; 0 = off. DAPO: 0.2."""
    overlong_scale: float = 1.0
    """Penalty at the limit, >= 0. DAPO: 1."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Range checks, called by `__post_init__` of every subclass."""
        if self.group_size < 1:
            raise ValueError(f"algorithm.group_size must be >= 1, got {self.group_size}")
        if not 0.0 <= self.overlong_fraction <= 1.0:
            raise ValueError(
                f"algorithm.overlong_fraction must be in [0, 1], got {self.overlong_fraction}"
            )
        if not 0.0 <= self.overlong_scale < float("inf"):
            raise ValueError(f"algorithm.overlong_scale must be >= 0, got {self.overlong_scale}")


class Objective(NamedTuple):
    """Everything that decides a gradient: one value of each axis."""

    algorithm: AlgorithmConfig
    kl: KLConfig
    ratio: RatioConfig
    correction: CorrectionConfig


def check_setting(cfg: AlgorithmConfig, setting: Setting) -> None:
    """Raise when the run does not fit the configuration."""
    if cfg.group_size != setting.group_size:
        raise ValueError(
            f"algorithm.group_size must be the run's group size {setting.group_size}, "
            f"got {cfg.group_size}"
        )
    if cfg.group_filter is not GroupFilter.none and cfg.group_size < 2:
        raise ValueError(
            f"algorithm.group_filter={cfg.group_filter} needs algorithm.group_size >= 2, "
            f"got {cfg.group_size}; set group_filter=none"
        )


def shaped_rewards(cfg: AlgorithmConfig, setting: Setting, rollout: RolloutBatch) -> Tensor:
    """Rewards with the soft length penalty; NaN where a row has none."""
    if cfg.overlong_fraction == 0.0:
        return rollout.rewards
    return rollout.rewards + overlong_penalty(
        rollout.completion_mask,
        max_length=setting.max_completion_length,
        buffer=cfg.overlong_fraction * setting.max_completion_length,
        scale=cfg.overlong_scale,
    )


def loss_mask_of(cfg: AlgorithmConfig, rollout: RolloutBatch) -> Tensor:
    """Completion tokens that the loss may use, after the overlong and zero-std filters."""
    rows = torch.ones_like(rollout.truncated)
    if cfg.mask_truncated:
        rows = rows & ~rollout.truncated
    if cfg.group_filter is not GroupFilter.none:
        rows = rows & informative_groups(rollout.rewards, rollout.group_ids)
    return rollout.completion_mask & rows[:, None]


Aggregate = Callable[[Tensor, TrainBatch], Tensor]


def aggregate_of(kind: Aggregation, setting: Setting) -> Aggregate:
    """Per-token losses and their batch to the scalar that `kind` names."""
    if kind is Aggregation.microbatch_token_mean and setting.microbatched:
        raise ValueError(
            "algorithm.aggregation=microbatch_token_mean depends on how a batch is split: set "
            "algorithm.aggregation=token_mean, its value on an unsplit batch, or switch off "
            "micro-batching"
        )
    length = setting.max_completion_length
    table: Mapping[Aggregation, Aggregate] = {
        Aggregation.token_mean: lambda x, b: F.token_mean(x, b.loss_mask, b.num_tokens),
        Aggregation.sequence_mean: lambda x, b: F.sequence_mean(x, b.loss_mask, b.num_sequences),
        Aggregation.sequence_sum: lambda x, b: F.sequence_sum(x, b.loss_mask, b.num_sequences),
        Aggregation.constant_length: lambda x, b: F.constant_length(
            x, b.loss_mask, b.num_sequences, length
        ),
        Aggregation.microbatch_token_mean: lambda x, b: F.microbatch_token_mean(
            x, b.loss_mask, b.num_sequences
        ),
    }
    return table[kind]
