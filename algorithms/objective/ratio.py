"""The `ratio` group: the importance ratio, against whom, and what clips it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlkit.schema import Options


class RatioLevel(StrEnum):
    """The tokens that share one ratio."""

    token = "token"
    sequence = "sequence"
    sequence_mean = "sequence_mean"
    sequence_mean_token = "sequence_mean_token"


class OldPolicy(StrEnum):
    """This is the denominator of the ratio."""

    auto = "auto"
    current = "current"
    stored = "stored"
    sampler = "sampler"
    one = "one"


class Clip(StrEnum):
    """This is the surrogate; its formulas are in `rlkit.functional.clips`."""

    none = "none"
    ppo = "ppo"
    cispo = "cispo"
    gmpo = "gmpo"
    sapo = "sapo"


@dataclass(kw_only=True, slots=True)
class RatioConfig(Options):
    """These options choose the importance ratio pi / pi_old and its clip."""

    level: RatioLevel = RatioLevel.token
    """token; sequence (product over tokens); sequence_mean (geometric mean, GSPO);
    sequence_mean_token (same value, each token its own gradient: GSPO-token)."""
    old: OldPolicy = OldPolicy.auto
    """auto: stored if a batch gets several updates, else current; current: the policy itself,
    detached; stored: logps from before the first update; sampler: the generator's logps;
    one: no denominator, exp(logps) * A (unsloth-zoo 70f22bc6)."""
    detach: bool = True
    """false leaves the current policy in the denominator attached:

    The ratio is a constant 1 and the policy gradient exactly 0. Unsloth's "detach removed" run
    (unsloth_2025_no_detach); needs old=current.
    """
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
