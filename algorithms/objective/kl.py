"""The `kl` group: which divergence from the reference, where it enters, and with which gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from rlkit.functional import (
    forward_k1,
    forward_k3,
    reverse_k1,
    reverse_k2,
    reverse_k3,
    unsloth_forward,
    unsloth_full_reverse,
    unsloth_log_weighted,
)
from rlkit.schema import Options
from rlkit.types import KLDirection


class KLEstimator(StrEnum):
    """The estimator of the divergence; formulas stand in `rlkit.functional.kl`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"
    exact = "exact"
    top_k = "top_k"
    unsloth_full_reverse = "unsloth_full_reverse"
    unsloth_forward = "unsloth_forward"
    unsloth_log_weighted = "unsloth_log_weighted"


class KLPlacement(StrEnum):
    """The place where beta * KL enters."""

    loss = "loss"
    reward = "reward"
    advantage = "advantage"


class KLGradient(StrEnum):
    """The gradient of a KL in the loss; its value stays the estimator's."""

    pathwise = "pathwise"
    score_function = "score_function"
    straight_through = "straight_through"


class KLWeight(StrEnum):
    """This is the importance weight pi / pi_old on a KL in the loss, for off-policy updates."""

    none = "none"
    old = "old"


class KLHorizon(StrEnum):
    """The horizon says if a KL in the loss sees that a token changes the prefixes after it."""

    token = "token"
    sequence = "sequence"


_Estimator = Callable[[Tensor, Tensor], Tensor]

ESTIMATORS: Mapping[tuple[KLDirection, KLEstimator], _Estimator] = {
    (KLDirection.reverse, KLEstimator.k1): reverse_k1,
    (KLDirection.reverse, KLEstimator.k2): reverse_k2,
    (KLDirection.reverse, KLEstimator.k3): reverse_k3,
    (KLDirection.forward, KLEstimator.k1): forward_k1,
    (KLDirection.forward, KLEstimator.k3): forward_k3,
    (KLDirection.reverse, KLEstimator.unsloth_full_reverse): unsloth_full_reverse,
    (KLDirection.reverse, KLEstimator.unsloth_log_weighted): unsloth_log_weighted,
    (KLDirection.forward, KLEstimator.unsloth_forward): unsloth_forward,
}


@dataclass(kw_only=True, slots=True)
class KLConfig(Options):
    """These options choose the divergence from the reference, the model with the adapter off."""

    direction: KLDirection = KLDirection.reverse
    """none; reverse = KL(policy || ref); forward = KL(ref || policy)."""
    estimator: KLEstimator = KLEstimator.k3
    """k1, k2, k3 of sampled tokens; exact, top_k over the vocabulary; unsloth_* as published."""
    placement: KLPlacement = KLPlacement.loss
    """loss; reward (detached, summed over the completion, before the baseline; per token in PPO);
    advantage (detached, reward-to-go, after baseline and scale)."""
    gradient: KLGradient = KLGradient.pathwise
    """pathwise: autograd of the estimator; score_function: times the live ratio (TRL's default);
    straight_through: gradient of k2 if reverse, of k3 if forward (verl `k1+`, `k3+`)."""
    weight: KLWeight = KLWeight.none
    """old multiplies the loss term by pi / pi_old: detached, or live if gradient=score_function."""
    horizon: KLHorizon = KLHorizon.token
    """sequence adds sg(sum of later KLs) * grad logp: the gradient of the KL between sequences."""
    beta: float = 0.04
    """Coefficient, >= 0. 0.04 is DeepSeekMath's; 0 only logs the divergence."""
    top_k: int | None = None
    """Words of the reference kept by estimator=top_k, >= 1; the rest is one bucket."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < float("inf"):
            raise ValueError(f"kl.beta must be >= 0 and finite, got {self.beta}")
        if self.direction is KLDirection.none:
            self._check_none()
            return
        if (self.top_k is not None) != (self.estimator is KLEstimator.top_k):
            raise ValueError(
                "kl.top_k must be set if and only if kl.estimator=top_k, "
                f"got kl.top_k={self.top_k} with kl.estimator={self.estimator}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"kl.top_k must be >= 1, got {self.top_k}")
        if not self.full_vocabulary and (self.direction, self.estimator) not in ESTIMATORS:
            raise ValueError(_NO_ESTIMATOR[self.direction].format(self.estimator))
        self._check_effective()

    def _check_none(self) -> None:
        for name, default in _SWITCHES.items():
            value = getattr(self, name)
            if value != default:
                raise ValueError(
                    f"kl.{name} has no effect with kl.direction=none, got {value}; "
                    "choose a direction, for example kl=reverse_k3"
                )
        if self.beta not in (0.0, 0.04):
            raise ValueError(
                f"kl.beta has no effect with kl.direction=none, got {self.beta}; "
                "choose a direction, for example kl=reverse_k3"
            )

    def _check_effective(self) -> None:
        if self.placement is not KLPlacement.loss:
            for name in ("gradient", "weight", "horizon"):
                if getattr(self, name) != _SWITCHES[name]:
                    raise ValueError(
                        f"kl.{name}={getattr(self, name)} needs kl.placement=loss: a KL in the "
                        f"{self.placement} is detached and has the policy gradient's gradient"
                    )
            if self.full_vocabulary:
                raise ValueError(
                    f"kl.estimator={self.estimator} needs kl.placement=loss, got {self.placement}; "
                    "use kl.estimator=k1 there"
                )
        if self.full_vocabulary and self.gradient is not KLGradient.pathwise:
            raise ValueError(
                f"kl.gradient must be pathwise with kl.estimator={self.estimator}, got "
                f"{self.gradient}: a sum over the vocabulary has no sampling to correct"
            )
        if self.full_vocabulary and self.weight is not KLWeight.none:
            raise ValueError(
                f"kl.weight must be none with kl.estimator={self.estimator}, got {self.weight}: "
                "a sum over the vocabulary has no sampled token to weight"
            )
        if self.estimator.startswith("unsloth") and (
            self.gradient is not KLGradient.pathwise or self.horizon is not KLHorizon.token
        ):
            raise ValueError(
                f"kl.estimator={self.estimator} is kept as published: "
                "kl.gradient must be pathwise and kl.horizon token"
            )

    @property
    def enabled(self) -> bool:
        return self.direction is not KLDirection.none

    @property
    def full_vocabulary(self) -> bool:
        return self.estimator in (KLEstimator.exact, KLEstimator.top_k)

    @property
    def in_loss(self) -> bool:
        return self.enabled and self.placement is KLPlacement.loss

    @property
    def in_reward(self) -> bool:
        return self.enabled and self.placement is KLPlacement.reward


_SWITCHES: Mapping[str, object] = {
    "gradient": KLGradient.pathwise,
    "weight": KLWeight.none,
    "horizon": KLHorizon.token,
    "placement": KLPlacement.loss,
    "estimator": KLEstimator.k3,
    "top_k": None,
}

_NO_ESTIMATOR = {
    KLDirection.reverse: "kl.estimator={} estimates a forward KL; set kl.direction=forward",
    KLDirection.forward: "kl.estimator={} has no forward form; use k1, k3 or exact, "
    "or set kl.direction=reverse",
}
