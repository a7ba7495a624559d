"""The `ratio` group: the importance ratio, against whom, and what clips it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.functional import clips
from rlkit.functional.masks import keep
from rlkit.functional.ratios import (
    log_ratio,
    mean_log_ratio,
    mean_log_ratio_per_token,
    ratio,
    sequence_log_ratio,
)
from rlkit.types import Column, RolloutBatch, Setting


class RatioLevel(StrEnum):
    """What one ratio covers."""

    token = "token"
    sequence = "sequence"
    sequence_mean = "sequence_mean"
    sequence_mean_token = "sequence_mean_token"


class OldPolicy(StrEnum):
    """The denominator of the ratio."""

    auto = "auto"
    current = "current"
    stored = "stored"
    sampler = "sampler"
    one = "one"


class Clip(StrEnum):
    """The surrogate; formulas in `rlkit.functional.clips`."""

    none = "none"
    ppo = "ppo"
    cispo = "cispo"
    gmpo = "gmpo"
    sapo = "sapo"


@dataclass(kw_only=True, slots=True)
class RatioConfig:
    """Importance ratio pi / pi_old and its clip."""

    level: RatioLevel = RatioLevel.token
    """token; sequence (product over tokens); sequence_mean (geometric mean, GSPO);
    sequence_mean_token (same value, each token its own gradient: GSPO-token)."""
    old: OldPolicy = OldPolicy.auto
    """auto: stored if a batch gets several updates, else current; current: the policy itself,
    detached; stored: logps from before the first update; sampler: the generator's logps;
    one: no denominator, exp(logps) * A (unsloth-zoo 70f22bc6)."""
    detach: bool = True
    """false leaves the current policy in the denominator attached: the ratio is a constant 1 and
    the policy gradient exactly 0. The seed's "detach removed" run; needs old=current."""
    clip: Clip = Clip.ppo
    """none; ppo (with low, high, delta, dual); cispo; gmpo; sapo."""
    clip_low: float = 0.2
    """Lower bound 1 - clip_low of the ratio, >= 0 (in log space for gmpo). PPO and TRL: 0.2."""
    clip_high: float = 0.2
    """Upper bound 1 + clip_high, >= 0. TRL's cispo gives the cap itself: 5.0 there is 4.0 here."""
    delta: float | None = None
    """Upper bound of the ratio where A < 0, > 1 + clip_high; clip=ppo only (INTELLECT-2)."""
    dual: float | None = None
    """Dual clip: the loss is at most -dual * A where A < 0, > 1; clip=ppo only (verl: 3)."""
    tau_positive: float = 1.0
    """Temperature of sapo where A > 0, > 0."""
    tau_negative: float = 1.05
    """Temperature of sapo where A <= 0, > 0."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.clip_low < float("inf"):
            raise ValueError(f"ratio.clip_low must be >= 0 and finite, got {self.clip_low}")
        if not 0.0 <= self.clip_high < float("inf"):
            raise ValueError(f"ratio.clip_high must be >= 0 and finite, got {self.clip_high}")
        if self.clip is Clip.ppo and self.clip_low > 1.0:
            raise ValueError(
                f"ratio.clip_low must be <= 1 with ratio.clip=ppo, got {self.clip_low}; "
                "1 switches the lower bound off"
            )
        for name, bound in (("delta", 1.0 + self.clip_high), ("dual", 1.0)):
            value = getattr(self, name)
            if value is not None and self.clip is not Clip.ppo:
                raise ValueError(f"ratio.{name} needs ratio.clip=ppo, got ratio.clip={self.clip}")
            if value is not None and not value > bound:
                raise ValueError(f"ratio.{name} must be > {bound}, got {value}")
        for name in ("tau_positive", "tau_negative"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"ratio.{name} must be > 0, got {getattr(self, name)}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        unbounded = self.clip in (Clip.none, Clip.sapo)
        if unbounded and (self.clip_low, self.clip_high) != (0.2, 0.2):
            raise ValueError(
                f"ratio.clip_low and ratio.clip_high have no effect with ratio.clip={self.clip}, "
                f"got {self.clip_low} and {self.clip_high}; set ratio.clip=ppo or leave both at 0.2"
            )
        if self.clip is not Clip.sapo and (self.tau_positive, self.tau_negative) != (1.0, 1.05):
            raise ValueError(
                "ratio.tau_positive and ratio.tau_negative have no effect with "
                f"ratio.clip={self.clip}; set ratio=sapo"
            )
        if self.clip is Clip.gmpo and self.level is not RatioLevel.sequence_mean:
            raise ValueError(
                f"ratio.clip=gmpo needs ratio.level=sequence_mean, got {self.level}: "
                "it clips tokens and then takes their geometric mean"
            )
        if not self.detach and self.old not in (OldPolicy.auto, OldPolicy.current):
            raise ValueError(
                f"ratio.detach=false needs ratio.old=current, got {self.old}: "
                "other denominators are data and have no gradient to detach"
            )
        if not self.detach and self.clip is Clip.cispo:
            raise ValueError(
                "ratio.detach=false has no effect with ratio.clip=cispo, whose ratio is always "
                "detached; set ratio.clip=ppo or none"
            )
        if self.old is OldPolicy.one and (
            self.clip is not Clip.none or self.level is not RatioLevel.token
        ):
            raise ValueError(
                "ratio.old=one is a probability, not a ratio: set ratio.clip=none and "
                "ratio.level=token"
            )


def resolve_old(cfg: RatioConfig, setting: Setting) -> OldPolicy:
    """`cfg.old` with auto resolved, after checking it against the run."""
    if cfg.old is not OldPolicy.auto:
        return cfg.old
    if setting.updates_per_batch == 1:
        return OldPolicy.current
    if not cfg.detach:
        raise ValueError(
            "ratio.detach=false needs ratio.old=current; ratio.old=auto means stored with "
            f"{setting.updates_per_batch} updates per batch"
        )
    return OldPolicy.stored


def columns_of(old: OldPolicy) -> frozenset[Column]:
    """Columns that the trainer has to fill for a resolved `old`."""
    return frozenset({Column.old_logps}) if old is OldPolicy.stored else frozenset()


def old_logps_of(cfg: RatioConfig, old: OldPolicy, logps: Tensor, rollout: RolloutBatch) -> Tensor:
    """The denominator's logps: data, detached `logps`, or `logps` itself if not `cfg.detach`."""
    if old is OldPolicy.current:
        return logps.detach() if cfg.detach else logps
    if old is OldPolicy.sampler:
        return rollout.sampling_logps.detach()
    if old is OldPolicy.one:
        return torch.zeros_like(logps)
    if rollout.old_logps is None:
        raise ValueError("ratio.old=stored needs RolloutBatch.old_logps")
    return rollout.old_logps.detach()


class Surrogate(NamedTuple):
    """Per-token policy loss and where a bound was exceeded (B C each)."""

    loss: Tensor
    low: Tensor
    """Ratio below 1 - clip_low with A < 0."""
    high: Tensor
    """Ratio above 1 + clip_high with A > 0."""


_LEVELS: Mapping[RatioLevel, Callable[[Tensor, Tensor], Tensor]] = {
    RatioLevel.token: keep,
    RatioLevel.sequence: sequence_log_ratio,
    RatioLevel.sequence_mean: mean_log_ratio,
    RatioLevel.sequence_mean_token: mean_log_ratio_per_token,
}


def surrogate(
    cfg: RatioConfig, logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor
) -> Surrogate:
    """The policy loss of `cfg` per token, before correction and aggregation."""
    tokens = log_ratio(logps, old_logps, mask)
    log_r = _LEVELS[cfg.level](tokens, mask)
    if cfg.clip is Clip.gmpo:
        clipped_log = clips.clipped_mean_log_ratio(
            tokens, advantages, mask, low=cfg.clip_low, high=cfg.clip_high
        )
        loss = clips.unclipped(ratio(clipped_log), advantages)
        low, high = tokens < -cfg.clip_low, tokens > cfg.clip_high
    else:
        r = ratio(log_r)
        loss = _clip(cfg, r, logps, advantages)
        low, high = r < 1 - cfg.clip_low, r > 1 + cfg.clip_high
    clips_at_all = mask if cfg.clip not in (Clip.none, Clip.sapo) else mask & False
    return Surrogate(
        keep(loss, mask),
        low & (advantages < 0) & clips_at_all,
        high & (advantages > 0) & clips_at_all,
    )


def _clip(cfg: RatioConfig, r: Tensor, logps: Tensor, advantages: Tensor) -> Tensor:
    match cfg.clip:
        case Clip.ppo:
            return clips.clipped(
                r,
                advantages,
                low=cfg.clip_low,
                high=cfg.clip_high,
                delta=cfg.delta,
                dual=cfg.dual,
            )
        case Clip.cispo:
            return clips.cispo(r, logps, advantages, low=cfg.clip_low, high=cfg.clip_high)
        case Clip.sapo:
            return clips.soft_gate(
                r, advantages, tau_positive=cfg.tau_positive, tau_negative=cfg.tau_negative
            )
        case _:
            return clips.unclipped(r, advantages)
