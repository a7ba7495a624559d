"""The base of every algorithm's configuration, and the objective that holds all axes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rlkit.algorithms.objective.correction import CorrectionConfig
from rlkit.algorithms.objective.kl import KLConfig
from rlkit.algorithms.objective.ratio import RatioConfig
from rlkit.functional import informative_groups, keep, overlong_penalty, terminal_rewards
from rlkit.schema import Between, Options
from rlkit.types import RolloutBatch, Setting


class GroupFilter(StrEnum):
    """The fate of groups whose rewards are all equal."""

    none = "none"
    mask = "mask"
    resample = "resample"


@dataclass(kw_only=True, slots=True)
class AlgorithmConfig(Options):
    """These are the fields of every algorithm."""

    preset: str = ""
    """The option of the group `algorithm` that was chosen; set by its own YAML."""
    group_size: Annotated[int, Between(1, 10_000)] = 8
    """Completions sampled per prompt, in [1, 10000]. DeepSeekMath 64, TRL 8."""
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
        """Check the ranges; `__post_init__` of every subclass calls this."""
        if self.group_size < 1:
            raise ValueError(f"algorithm.group_size must be >= 1, got {self.group_size}")
        if not 0.0 <= self.overlong_fraction <= 1.0:
            raise ValueError(
                f"algorithm.overlong_fraction must be in [0, 1], got {self.overlong_fraction}"
            )
        if not 0.0 <= self.overlong_scale < float("inf"):
            raise ValueError(f"algorithm.overlong_scale must be >= 0, got {self.overlong_scale}")


@runtime_checkable
class Axes(Protocol):
    """A configuration that chooses a value of every axis: a run's `Config`."""

    @property
    def algorithm(self) -> AlgorithmConfig: ...
    @property
    def kl(self) -> KLConfig: ...
    @property
    def ratio(self) -> RatioConfig: ...
    @property
    def correction(self) -> CorrectionConfig: ...


ConfigT = TypeVar("ConfigT", bound=AlgorithmConfig, covariant=True)
"""The dataclass of an algorithm's options."""


@dataclass(frozen=True)
class Objective(Generic[ConfigT]):
    """Everything that decides a gradient: one value of each axis."""

    algorithm: ConfigT
    kl: KLConfig
    ratio: RatioConfig
    correction: CorrectionConfig

    @staticmethod
    def of(config: Axes) -> Objective[AlgorithmConfig]:
        """Return the objective that a run's configuration describes."""
        return Objective(config.algorithm, config.kl, config.ratio, config.correction)


def check_setting(cfg: AlgorithmConfig, setting: Setting) -> None:
    """Raise ValueError when the run does not fit the configuration."""
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
    """Return the rewards with the soft length penalty; NaN where a row has none."""
    if cfg.overlong_fraction == 0.0:
        return rollout.rewards
    return rollout.rewards + overlong_penalty(
        rollout.completion_mask,
        max_length=setting.max_completion_length,
        buffer=cfg.overlong_fraction * setting.max_completion_length,
        scale=cfg.overlong_scale,
    )


def token_rewards(cfg: AlgorithmConfig, setting: Setting, rollout: RolloutBatch) -> Tensor:
    """Return the shaped rewards at the last sampled token of each turn (B C), 0.0 elsewhere."""
    mask, shaped = rollout.completion_mask, shaped_rewards(cfg, setting, rollout)
    if rollout.turn_rewards is None:
        return terminal_rewards(shaped, mask)
    of_turns = keep(rollout.turn_rewards, mask).nan_to_num(nan=0.0)
    return of_turns + terminal_rewards(shaped - rollout.rewards, mask)


def loss_mask_of(cfg: AlgorithmConfig, rollout: RolloutBatch) -> Tensor:
    """Return the tokens that the loss may use, after the overlong and zero-std filters."""
    rows = torch.ones_like(rollout.truncated)
    if cfg.mask_truncated:
        rows = rows & ~rollout.truncated
    if cfg.group_filter is not GroupFilter.none:
        rows = rows & informative_groups(rollout.rewards, rollout.group_ids)
    return rollout.completion_mask & rows[:, None]
