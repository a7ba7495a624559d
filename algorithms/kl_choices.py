"""What the keys of the `kl` group can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from torch import Tensor

from rlkit.functional import kl as F
from rlkit.types import KLDirection


class KLEstimator(StrEnum):
    """How the divergence is estimated; formulas in `rlkit.functional.kl`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"
    exact = "exact"
    top_k = "top_k"
    unsloth_full_reverse = "unsloth_full_reverse"
    unsloth_forward = "unsloth_forward"
    unsloth_log_weighted = "unsloth_log_weighted"


class KLPlacement(StrEnum):
    """Where beta * KL enters."""

    loss = "loss"
    reward = "reward"
    advantage = "advantage"


class KLGradient(StrEnum):
    """Which gradient a KL in the loss has; its value stays the estimator's."""

    pathwise = "pathwise"
    score_function = "score_function"
    straight_through = "straight_through"


class KLWeight(StrEnum):
    """Importance weight pi / pi_old on a KL in the loss, for off-policy updates."""

    none = "none"
    old = "old"


class KLHorizon(StrEnum):
    """Whether a KL in the loss sees that a token changes the prefixes after it."""

    token = "token"
    sequence = "sequence"


_Estimator = Callable[[Tensor, Tensor], Tensor]

ESTIMATORS: Mapping[tuple[KLDirection, KLEstimator], _Estimator] = {
    (KLDirection.reverse, KLEstimator.k1): F.reverse_k1,
    (KLDirection.reverse, KLEstimator.k2): F.reverse_k2,
    (KLDirection.reverse, KLEstimator.k3): F.reverse_k3,
    (KLDirection.forward, KLEstimator.k1): F.forward_k1,
    (KLDirection.forward, KLEstimator.k3): F.forward_k3,
    (KLDirection.reverse, KLEstimator.unsloth_full_reverse): F.unsloth_full_reverse,
    (KLDirection.reverse, KLEstimator.unsloth_log_weighted): F.unsloth_log_weighted,
    (KLDirection.forward, KLEstimator.unsloth_forward): F.unsloth_forward,
}
