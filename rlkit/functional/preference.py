"""Preference losses over pairs, and how pairs are chosen from rewards.

The margin h of a pair is log pi/ref of the chosen completion minus that of the rejected one. Both
are summed over tokens. Losses are per pair, to minimise.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlkit.functional.masks import keep

Pairs = Float[Tensor, " N"]


def preference_margins(
    logps: Float[Tensor, "B C"], ref_logps: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]
) -> Pairs:
    """Return h of each pair; rows are chosen, rejected, chosen, rejected, ..."""
    rows = (keep(logps, mask) - keep(ref_logps, mask)).sum(dim=1)
    return rows[0::2] - rows[1::2]


def dpo_loss(margin: Pairs, *, beta: float, label_smoothing: float | Pairs = 0.0) -> Pairs:
    """Return -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h).

    s is the probability in [0, 0.5] that the label is wrong, one for all pairs or one for each.
    s > 0 is conservative DPO (Mitchell 2023). Source: DPO, arXiv:2305.18290, eq. 7.
    """
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(margin: Pairs, *, beta: float) -> Pairs:
    """Return (h - 1/(2 beta))^2: a target margin instead of an unbounded one.

    Source: IPO, arXiv:2310.12036, eq. 17 (beta is its tau), with summed logps.
    """
    return (margin - 1.0 / (2.0 * beta)).square()


def hinge_loss(margin: Pairs, *, beta: float) -> Pairs:
    """Return max(0, 1 - beta h).

    Source: SLiC, arXiv:2305.10425, as normalised in arXiv:2309.06657.
    """
    return (1.0 - beta * margin).clamp(min=0.0)


def xpo_optimism_loss(
    logps: Float[Tensor, "B C"],
    ref_logps: Float[Tensor, "B C"],
    sampling_logps: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    *,
    max_weight: float,
) -> Float[Tensor, " B"]:
    """Return sg(min(ref/sampler, max_weight)) * log pi of each completion: minimised, it explores.

    Under samples of the sampler its mean is E_ref[log pi] (up to the cap). That is the bonus of
    XPO, arXiv:2405.21046, algorithm 1, which draws from the reference instead.

    Args:
        logps: log pi of each token, nats.
        ref_logps: the reference's.
        sampling_logps: the sampler's.
        mask: tokens that count.
        max_weight: cap of the weight of a completion, > 0.
    """
    log_weight = (keep(ref_logps, mask) - keep(sampling_logps, mask)).sum(dim=1).detach()
    weight = log_weight.clamp(max=torch.tensor(max_weight).log().item()).exp()
    return weight * keep(logps, mask).sum(dim=1)


def best_worst_pair(rewards: Float[Tensor, " G"]) -> Int[Tensor, "2"]:
    """Return the rows of the highest and the lowest reward; first and last if all are equal.

    NaN rows are ignored while two others are left.
    """
    order = _descending(rewards)
    num_scored = max(int((~rewards.isnan()).sum()), 2)
    return order[[0, num_scored - 1]]


def ranked_pairs(rewards: Float[Tensor, " G"]) -> Int[Tensor, " _"]:
    """Pair best with worst, second best with second worst, ...: floor(G/2) pairs.

    Each row is in one pair at most. The result is chosen, rejected, chosen, ...; NaN rows rank
    last.
    """
    order = _descending(rewards)
    half = len(order) // 2
    return torch.stack([order[:half], order.flip(0)[:half]], dim=1).flatten()


def neighbour_pairs(rewards: Float[Tensor, " G"]) -> Int[Tensor, " _"]:
    """Pair rows (0, 1), (2, 3), ...: the better one is chosen, the first one if equal (TRL's rule).

    This is the only rule here that does not look at the whole group, hence unbiased for two
    samples.
    """
    half = len(rewards) // 2
    first = torch.arange(half, device=rewards.device) * 2
    swap = (rewards[first + 1] > rewards[first]).long()
    return torch.stack([first + swap, first + 1 - swap], dim=1).flatten()


def _descending(rewards: Tensor) -> Tensor:
    return rewards.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
