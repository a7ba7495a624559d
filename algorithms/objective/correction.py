"""The `correction` group weights the gap between generator and trainer by importance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from torch import Tensor

from rlkit.functional import (
    importance_ratio,
    mask_weights,
    sampler_log_ratio,
    sequence_log_ratio,
    truncate_weights,
)
from rlkit.schema import Between, Options


class CorrectionMode(StrEnum):
    """This is the fate of a weight outside [low, high]."""

    none = "none"
    truncate = "truncate"
    mask = "mask"


class CorrectionLevel(StrEnum):
    """The tokens that share one weight."""

    token = "token"
    sequence = "sequence"


@dataclass(kw_only=True, slots=True)
class CorrectionConfig(Options):
    """Weights exp(trainer logps - sampling logps) on the policy loss; the KL term has none."""

    mode: CorrectionMode = CorrectionMode.none
    """none; truncate: clamp to [low, high] (TIS); mask: drop samples outside (IcePop, TRL's default
    at sequence level). The mismatch is logged in any case."""
    level: CorrectionLevel = CorrectionLevel.token
    """token: biased, bounded; sequence: product over the completion, unbiased until it is cut."""
    low: float = 0.0
    """Lower bound, >= 0."""
    high: Annotated[float, Between(0.0, math.inf)] = 2.0
    """Upper bound, > low; inf with mode=truncate gives plain importance sampling. TIS: 2."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < float("inf"):
            raise ValueError(f"correction.low must be >= 0 and finite, got {self.low}")
        if not self.high > self.low:
            raise ValueError(
                f"correction.high must be > correction.low={self.low}, got {self.high}"
            )

        unset = (CorrectionLevel.token, 0.0, 2.0)
        if not self.enabled and (self.level, self.low, self.high) != unset:
            raise ValueError(
                "correction.level, low and high have no effect with correction.mode=none, got "
                f"{self.level}, {self.low} and {self.high}; set correction=none or a mode"
            )

    @property
    def enabled(self) -> bool:
        return self.mode is not CorrectionMode.none


def correction_weights(
    cfg: CorrectionConfig, old_logps: Tensor, sampling_logps: Tensor, mask: Tensor
) -> Tensor:
    """Return detached weights of the policy loss, (B C) or (B 1).

    Args:
        cfg: the group `correction`, which must be enabled.
        old_logps: the trainer's logps before the updates, nats.
        sampling_logps: the generator's, nats.
        mask: tokens that count.
    """
    d = sampler_log_ratio(old_logps, sampling_logps, mask)
    weight = importance_ratio(
        d if cfg.level is CorrectionLevel.token else sequence_log_ratio(d, mask)
    )
    cut = truncate_weights if cfg.mode is CorrectionMode.truncate else mask_weights
    return cut(weight, low=cfg.low, high=cfg.high)
