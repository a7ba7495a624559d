"""Log-ratios and importance ratios between two policies on the sampled tokens.

All take logps in nats. Inputs are masked before `exp`, so padding may hold anything.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import keep, lengths

MAX_LOG_RATIO = 30.0
"""exp is taken of log-ratios clamped to +-30: e^30 is beyond any use and keeps 0 * ratio finite."""


def log_ratio(
    logps: Float[Tensor, "B C"], old_logps: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """Return log pi(y_t) - log pi_old(y_t) per token; 0.0 where `mask` is False.

    Gradients flow into both arguments: detach `old_logps` at the call unless their gradient is the
    point (`old_logps = logps` makes the ratio a constant 1 with gradient exactly 0).
    """
    return keep(logps, mask) - keep(old_logps, mask)


def importance_ratio(log_ratio: Float[Tensor, "B _"]) -> Float[Tensor, "B _"]:
    """Return exp(log_ratio), with the exponent clamped to +-`MAX_LOG_RATIO`."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_log_ratio(
    log_ratio: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B 1"]:
    """Return sum_t log_ratio_t, the log-ratio of whole completions.

    Its ratio is the exact importance weight of a sequence; its standard deviation grows with the
    root of the length.
    """
    return keep(log_ratio, mask).sum(dim=1, keepdim=True)


def mean_log_ratio(
    log_ratio: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B 1"]:
    """Return 1/|y| sum_t log_ratio_t, the log of the geometric-mean ratio.

    It is not a density ratio, hence biased off-policy. Source: GSPO, arXiv:2507.18071, eq. 7.
    """
    return sequence_log_ratio(log_ratio, mask) / lengths(mask)


def mean_log_ratio_per_token(
    log_ratio: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """Return sg(mean log-ratio) + log_ratio_t - sg(log_ratio_t).

    The value is GSPO's, the gradient each token's own. It equals GSPO when advantages are constant
    in t. Source: GSPO-token, arXiv:2507.18071, eq. 14.
    """
    mean = mean_log_ratio(log_ratio, mask).detach()
    return keep(mean + log_ratio - log_ratio.detach(), mask)
