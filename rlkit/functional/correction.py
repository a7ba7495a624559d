"""Sampler correction: the generator's distribution is not exactly the trainer's.

Weights are exp(trainer logps - sampling logps) at the policy version that sampled; they multiply
the policy loss and carry no gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import keep
from rlkit.functional.ratios import importance_ratio, sequence_log_ratio


def sampler_log_ratio(
    logps: Float[Tensor, "B C"], sampling_logps: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """Return log pi_train - log pi_sample per token, detached.

    It is 0.0 on padding and where the sampler reported NaN, which `sampling_mismatch` counts.
    """
    d = keep(logps.detach(), mask) - keep(sampling_logps.detach(), mask)
    return torch.nan_to_num(d, nan=0.0)


def truncate_weights(
    weight: Float[Tensor, "B _"], *, low: float, high: float
) -> Float[Tensor, "B _"]:
    """Return min(max(weight, low), high).

    Source: truncated importance sampling, Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy training" (low = 0).
    """
    return weight.clamp(low, high)


def mask_weights(weight: Float[Tensor, "B _"], *, low: float, high: float) -> Float[Tensor, "B _"]:
    """Return the weight inside [low, high] and 0 outside.

    Samples too far off are dropped, but still counted in denominators. Source: IcePop (Ring-1T,
    arXiv:2510.18855); TRL `*_mask`.
    """
    return torch.where((weight >= low) & (weight <= high), weight, 0.0)


def sampling_mismatch(
    logps: Float[Tensor, "B C"], sampling_logps: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> dict[str, Tensor]:
    """Measure how far the trainer's logps are from the sampler's, for one whole batch.

    The numbers do not add up over micro-batches. With d = log pi_train - log pi_sample under tokens
    of the sampler and w = exp(d), they are

    - `sampling/sampling_logp_difference/{mean,max}` of |d| (TRL's names, nats);
    - `sampling/importance_sampling_ratio/{min,mean,max}` of w;
    - `sampling/kl` = mean(w - 1 - d), the k3 estimate of KL(sample || train);
    - `sampling/kl_k1` = mean(-d), the k1 estimate of it;
    - `sampling/ess` = (sum w)^2 / (n sum w^2) in (0, 1], over tokens;
    - `sampling/sequence_ess`, the same of the products over each row;
    - `sampling/nan_fraction` of tokens without a sampling logp.
    """
    d = sampler_log_ratio(logps, sampling_logps, mask)
    tokens, rows = d[mask], sequence_log_ratio(d, mask)[mask.any(dim=1), 0]
    if tokens.numel() == 0:
        return {}
    weights = importance_ratio(tokens[None])[0]
    nan = torch.isnan(sampling_logps[mask]).to(d.dtype)
    return {
        "sampling/sampling_logp_difference/mean": tokens.abs().mean(),
        "sampling/sampling_logp_difference/max": tokens.abs().max(),
        "sampling/importance_sampling_ratio/min": weights.min(),
        "sampling/importance_sampling_ratio/mean": weights.mean(),
        "sampling/importance_sampling_ratio/max": weights.max(),
        "sampling/kl": (torch.expm1(tokens) - tokens).mean(),
        "sampling/kl_k1": -tokens.mean(),
        "sampling/ess": effective_sample_size(tokens),
        "sampling/sequence_ess": effective_sample_size(rows),
        "sampling/nan_fraction": nan.mean(),
    }


def effective_sample_size(log_weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return (sum w)^2 / (N sum w^2), a fraction in (0, 1]; 1 means that two distributions agree.

    It does not depend on the scale of w, hence log space is safe. Source: Kish 1965.
    """
    log_sum = torch.logsumexp(log_weights, dim=0)
    log_square = torch.logsumexp(2 * log_weights, dim=0)
    return (2 * log_sum - log_square).exp() / log_weights.numel()
