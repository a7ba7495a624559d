"""Surrogate losses of the policy gradient: what happens to a token whose ratio has moved.

Each returns a per-token loss to minimise. `ratio` is pi / pi_old (B C), or (B 1) for a ratio of
whole sequences; a positive advantage asks for a larger probability.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import keep
from rlkit.functional.ratios import mean_log_ratio


def surrogate_loss(
    ratio: Float[Tensor, "B _"], advantages: Float[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """-ratio * A. Gradient -ratio * A * grad log pi: on-policy the policy gradient itself."""
    return -(ratio * advantages)


def clipped_surrogate_loss(
    ratio: Float[Tensor, "B _"],
    advantages: Float[Tensor, "B C"],
    *,
    low: float,
    high: float,
    delta: float | None = None,
    dual: float | None = None,
) -> Float[Tensor, "B C"]:
    """PPO's pessimistic clip, with its two bounds for negative advantages.

    -min(min(ratio, delta) * A, clip(ratio, 1 - low, 1 + high) * A), then at most -dual * A where
    A < 0. No gradient where A > 0 and ratio > 1 + high, where A < 0 and ratio < 1 - low, and where
    A < 0 and ratio > delta or dual. low = high: PPO (arXiv:1707.06347, eq. 7); high > low:
    clip-higher (DAPO, arXiv:2503.14476, eq. 8); `delta` > 1 + high: two-sided clip (INTELLECT-2,
    arXiv:2505.07291); `dual` > 1: dual clip (arXiv:1912.09729, eq. 5). For A < 0 delta and dual
    give the same loss.
    """
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    surrogate = torch.minimum(bounded * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual is not None:
        floor = torch.maximum(surrogate, dual * advantages)
        surrogate = torch.where(advantages < 0, floor, surrogate)
    return -surrogate


def cispo_loss(
    ratio: Float[Tensor, "B _"],
    logps: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B C"]:
    """-sg(clip(ratio, 1 - low, 1 + high)) * A * log pi: weights are bounded, no token is dropped.

    Source: CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4-5). `low` >= 1 switches the lower bound off.
    TRL's `epsilon_high` is the cap itself, that is 1 + `high` here.
    """
    weight = ratio.detach().clamp(max(1 - low, 0.0), 1 + high)
    return -(weight * advantages * logps)


def sapo_loss(
    ratio: Float[Tensor, "B _"],
    advantages: Float[Tensor, "B C"],
    *,
    tau_positive: float,
    tau_negative: float,
) -> Float[Tensor, "B C"]:
    """-A * 4/tau * sigmoid(tau * (ratio - 1)): a smooth gate instead of a clip.

    tau is `tau_positive` where A > 0, else `tau_negative`. Slope 1 at ratio 1, so on-policy it is
    the policy gradient. Source: SAPO, arXiv:2511.20347, eq. 5-6.
    """
    # Filled in their dtype: torch.where of two floats would round them to float32 first.
    tau = torch.full_like(advantages, tau_negative).masked_fill(advantages > 0, tau_positive)
    return -advantages * 4.0 / tau * torch.sigmoid(tau * (ratio - 1))


def clipped_mean_log_ratio(
    log_ratio: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B 1"]:
    """Mean over the row of log-ratios clipped pessimistically token by token to [-low, high].

    Its exponential times -A is GMPO's loss (arXiv:2507.20673, eq. 4); the bounds are in log space.
    """
    sign = advantages.sign()
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-low, high))
    return mean_log_ratio(keep(pessimistic, mask), mask)
