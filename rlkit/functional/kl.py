"""KL divergences between policy and reference, estimated from tokens sampled by the policy.

Notation: q = logps of the policy pi, p = ref_logps, d = p - q, u = exp(d) = ref/pi; all per token,
in nats. Value and gradient of an estimator are different matters. For a function f(u) under samples
of pi, differentiating f alone (pathwise) gives E[f'(u) du/dq grad q]. The derivative of E[f] has
the score term E[f grad q] as well. `docs/objective.md` has the measured table.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import future_sum, keep
from rlkit.functional.ratios import importance_ratio

Tokens = Float[Tensor, "B C"]


def reverse_k1(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return q - p.

    Its value is an unbiased KL(pi || ref), noisy and of either sign. Its pathwise gradient is zero
    in expectation on-policy: pure noise. Source: Schulman, "Approximating KL divergence" (2020).
    """
    return logps - ref_logps


def reverse_k2(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return (q - p)^2 / 2.

    Its value is biased, and right to second order. Its pathwise gradient is that of KL(pi || ref),
    unbiased. Source: the same as `reverse_k1`.
    """
    return 0.5 * (logps - ref_logps).square()


def reverse_k3(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return u - 1 - log u, which is >= 0.

    Its value is an unbiased KL(pi || ref) of low variance. Its pathwise gradient is that of the
    FORWARD KL(ref || pi). Source: the same as `reverse_k1`; DeepSeekMath eq. 4.

    It uses expm1, because exp(d) - d - 1 in float32 is 5% off at d = 1e-3 and 100% off at 1e-4.
    """
    d = ref_logps - logps
    return torch.expm1(d) - d


def forward_k1(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return u log u.

    Its value is an unbiased KL(ref || pi) by importance sampling. Its pathwise gradient is biased;
    times the live ratio it is the forward KL's, with coefficient -u.
    """
    d = ref_logps - logps
    return d.exp() * d


def forward_k3(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return u log u - (u - 1), which is >= 0; u - 1 is a control variate.

    Its value is an unbiased KL(ref || pi). Its pathwise gradient is biased; times the live ratio it
    is the forward KL's, with coefficient 1 - u.
    """
    d = ref_logps - logps
    return d.exp() * d - torch.expm1(d)


def unsloth_full_reverse(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return exp(q) * k3: the commented "full reverse KL" of unsloth-zoo 581496dc (2025-02-20).

    Under samples of pi it weights by pi twice: neither value nor gradient is a KL's. Summed over
    the whole vocabulary instead of sampled, it would be KL(pi || ref) exactly.
    """
    return logps.exp() * reverse_k3(logps, ref_logps)


def unsloth_forward(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return exp(p) * (p - q): the commented "forward KL" of unsloth-zoo 46ce30f0 (2025-02-20).

    Its gradient is -ref * grad q: a fixed bonus of beta * ref(token), with no pull back to the
    reference. The sampled forward KL needs the weight ref/pi: see `forward_k1`.
    """
    return ref_logps.exp() * (ref_logps - logps)


def unsloth_log_weighted(logps: Tokens, ref_logps: Tokens) -> Tokens:
    """Return q * k3, tried in unsloth-zoo a5370e55 (2025-02-20).

    q is a LOG-probability, so the sign is wrong.
    """
    return logps * reverse_k3(logps, ref_logps)


def times_live_ratio(value: Tokens, log_ratio: Tokens) -> Tokens:
    """Return value * ratio with the gradient of both, which adds the score term.

    The gradient is then the derivative of E_pi[value] at frozen prefixes. `log_ratio` is q - sg(q)
    or q - old_logps.
    """
    return value * importance_ratio(log_ratio)


def straight_through(value: Tokens, gradient: Tokens) -> Tokens:
    """Return the value of `value` with the gradient of `gradient`."""
    return gradient + (value - gradient).detach()


def sequence_kl_term(value: Tokens, logps: Tokens, mask: Bool[Tensor, "B C"]) -> Tokens:
    """Return 0 with gradient sg(sum_{t'>t} value_t') * grad q_t.

    A token-level KL loss holds the distribution of prefixes fixed. This term says how token t
    changes later divergences: with it the gradient is that of the KL between whole sequences.
    Source: Tang and Munos, arXiv:2506.09477.
    """
    kept = keep(logps, mask)
    return future_sum(value.detach(), mask) * (kept - kept.detach())
