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
    """Return -ratio * A, the surrogate without a clip.

    Its gradient is -ratio * A * grad log pi: on-policy the policy gradient itself.
    """
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
    """Return PPO's pessimistic clip, with its two bounds for negative advantages.

    The loss is -min(min(ratio, delta) * A, clip(ratio, 1 - low, 1 + high) * A). Where A < 0 it is
    then at most -dual * A. Where A > 0 there is no gradient above 1 + high. Where A < 0 there is
    none below 1 - low nor above delta or dual, which give the same loss.

    Sources: PPO, arXiv:1707.06347, eq. 7 (low = high); clip-higher of DAPO, arXiv:2503.14476, eq.
    8; two-sided clip of INTELLECT-2, arXiv:2505.07291 (delta); dual clip, arXiv:1912.09729, eq. 5
    (dual).

    Args:
        ratio: pi / pi_old, > 0.
        advantages: one number a token.
        low: the lower bound is 1 - low, >= 0.
        high: the upper bound is 1 + high, >= 0.
        delta: upper bound of the ratio where A < 0, > 1 + high; None switches it off.
        dual: bound of the loss where A < 0, > 1; None switches it off.
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
    """Return -sg(clip(ratio, 1 - low, 1 + high)) * A * log pi: no token is dropped.

    Source: CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4-5).

    Args:
        ratio: pi / pi_old, > 0; it becomes a weight without gradient.
        logps: log pi of each token, nats.
        advantages: one number a token.
        low: the smallest weight is 1 - low; >= 1 switches the bound off.
        high: the largest weight is 1 + high, >= 0. TRL's `epsilon_high` is the weight itself.
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
    """Return -A * 4/tau * sigmoid(tau * (ratio - 1)): a smooth gate instead of a clip.

    Its slope is 1 at ratio 1, so on-policy it is the policy gradient. Source: SAPO,
    arXiv:2511.20347, eq. 5-6.

    Args:
        ratio: pi / pi_old, > 0.
        advantages: one number a token.
        tau_positive: temperature where A > 0, > 0.
        tau_negative: temperature where A <= 0, > 0.
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
    """Return the row's mean of log-ratios, each clipped pessimistically to [-low, high].

    Its exponential times -A is GMPO's loss (arXiv:2507.20673, eq. 4).

    Args:
        log_ratio: log pi / pi_old of each token.
        advantages: one number a token; its sign says which side is pessimistic.
        mask: tokens that count.
        low: the lower bound in log space is -low, >= 0.
        high: the upper bound in log space, >= 0.
    """
    sign = advantages.sign()
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-low, high))
    return mean_log_ratio(keep(pessimistic, mask), mask)
