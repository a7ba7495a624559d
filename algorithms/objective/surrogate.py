"""The policy loss that the `ratio` group describes, per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.algorithms.objective.ratio import Clip, OldPolicy, RatioConfig, RatioLevel
from rlkit.functional import (
    cispo_loss,
    clipped_mean_log_ratio,
    clipped_surrogate_loss,
    importance_ratio,
    keep,
    log_ratio,
    mean_log_ratio,
    mean_log_ratio_per_token,
    sapo_loss,
    sequence_log_ratio,
    surrogate_loss,
)
from rlkit.types import Column, RolloutBatch, Setting


def resolve_old(cfg: RatioConfig, setting: Setting) -> OldPolicy:
    """Return `cfg.old` with auto resolved; raises ValueError when it does not fit the run."""
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
    """Return the columns that the trainer has to fill for a resolved `old`."""
    return frozenset({Column.old_logps}) if old is OldPolicy.stored else frozenset()


def old_logps_of(cfg: RatioConfig, old: OldPolicy, logps: Tensor, rollout: RolloutBatch) -> Tensor:
    """Return the denominator's logps.

    They are data, detached `logps`, or `logps` itself if not `cfg.detach`.

    Args:
        cfg: the group `ratio`.
        old: its `old`, resolved by `resolve_old`.
        logps: the policy's, nats.
        rollout: holds the stored and the sampler's logps.
    """
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
    """Return the policy loss of `cfg` per token, before correction and aggregation.

    Args:
        cfg: the group `ratio`.
        logps: the policy's, nats.
        old_logps: the denominator's, nats.
        advantages: one number a token.
        mask: tokens that count.
    """
    tokens = log_ratio(logps, old_logps, mask)
    log_r = _LEVELS[cfg.level](tokens, mask)
    if cfg.clip is Clip.gmpo:
        clipped_log = clipped_mean_log_ratio(
            tokens, advantages, mask, low=cfg.clip_low, high=cfg.clip_high
        )
        loss = surrogate_loss(importance_ratio(clipped_log), advantages)
        low, high = tokens < -cfg.clip_low, tokens > cfg.clip_high
    else:
        r = importance_ratio(log_r)
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
            return clipped_surrogate_loss(
                r,
                advantages,
                low=cfg.clip_low,
                high=cfg.clip_high,
                delta=cfg.delta,
                dual=cfg.dual,
            )
        case Clip.cispo:
            return cispo_loss(r, logps, advantages, low=cfg.clip_low, high=cfg.clip_high)
        case Clip.sapo:
            return sapo_loss(
                r, advantages, tau_positive=cfg.tau_positive, tau_negative=cfg.tau_negative
            )
        case _:
            return surrogate_loss(r, advantages)
