"""Compute advantages from rewards of whole completions: baselines, scales, combinations.

Rewards are one number a row. NaN means not scored: such a row is left out of every statistic, and
its advantage is 0. Rows of a group share an id, and groups may have any size. Groups are centred on
their first row before anything else, so a group of equal rewards gives exactly 0 in any precision.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, " B"]
Groups = Int[Tensor, " B"]


def group_mean_advantages(rewards: Rows, group_ids: Groups) -> Rows:
    """Subtract the mean of the group: R - mean. This is GRPO's baseline.

    Under token-sum aggregation the expected gradient is the policy gradient times (n-1)/n.
    """
    shifted, valid, index, count = _shifted(rewards, group_ids)
    mean = _group_sum(shifted, index, count) / count.clamp(min=1)
    return torch.where(valid, shifted - mean[index], 0.0)


def leave_one_out_advantages(rewards: Rows, group_ids: Groups) -> Rows:
    """Subtract the mean of the group's OTHER rewards: n/(n-1) (R - mean), 0 in a group of one.

    It is unbiased at scale 1. Source: RLOO, Kool et al. 2019; arXiv:2402.14740, section 3.
    """
    shifted, valid, index, count = _shifted(rewards, group_ids)
    others = (_group_sum(shifted, index, count)[index] - shifted) / (count[index] - 1).clamp(min=1)
    return torch.where(valid & (count[index] > 1), shifted - others, 0.0)


def group_std(rewards: Rows, group_ids: Groups, *, bessel: bool) -> Rows:
    """Return the standard deviation of each row's group, 0 in a group of one.

    `bessel` divides the squares by n - 1 (TRL, verl, torch.std) instead of n.
    """
    shifted, valid, index, count = _shifted(rewards, group_ids)
    mean = _group_sum(shifted, index, count) / count.clamp(min=1)
    squares = torch.where(valid, shifted - mean[index], 0.0).square()
    divisor = (count - 1 if bessel else count).clamp(min=1)
    return (_group_sum(squares, index, count) / divisor).sqrt()[index]


def batch_mean_advantages(rewards: Rows) -> Rows:
    """Subtract the mean of the whole batch: R - mean."""
    return group_mean_advantages(rewards, _one_group(rewards))


def batch_std(rewards: Rows, *, bessel: bool) -> Rows:
    """Return the standard deviation over the whole batch, the same number for every row."""
    return group_std(rewards, _one_group(rewards), bessel=bessel)


def divide_by_std(advantages: Rows, std: Rows, *, eps: float) -> Rows:
    """Return A / (std + eps), 0 where the divisor is 0.

    eps is 1e-4 in TRL and 1e-6 in verl; it matters in groups of small spread.
    """
    divisor = std + eps
    return torch.where(divisor > 0, advantages / torch.where(divisor > 0, divisor, 1.0), 0.0)


def gdpo_advantages(
    components: Float[Tensor, "B K"],
    weights: Float[Tensor, " K"],
    group_ids: Groups,
    *,
    eps: float,
    bessel: bool,
) -> Rows:
    """Z-score every reward function in its group, add them up with weights, z-score the batch.

    So one function's spread does not drown another's. Source: GDPO, arXiv:2601.05242.

    Args:
        components: raw value of each reward function; NaN ones are left out.
        weights: factor of each function in the sum.
        group_ids: equal for rows of one group.
        eps: added to each standard deviation, >= 0.
        bessel: divide squares by n - 1 instead of n.

    Returns:
        One advantage a row; 0 for a row whose components are all NaN.
    """
    z_scores = [
        divide_by_std(
            group_mean_advantages(column, group_ids),
            group_std(column, group_ids, bessel=bessel),
            eps=eps,
        )
        for column in components.unbind(dim=1)
    ]
    total = torch.stack(z_scores, dim=1) @ weights.to(components.dtype)
    total = total.masked_fill(components.isnan().all(dim=1), torch.nan)
    return divide_by_std(batch_mean_advantages(total), batch_std(total, bessel=bessel), eps=eps)


def whiten_tokens(
    advantages: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], *, eps: float, bessel: bool
) -> Float[Tensor, "B C"]:
    """Return (A - mean) / (std + eps) over the kept tokens of the batch, 0.0 elsewhere.

    Source: REINFORCE++, arXiv:2501.03262, eq. 11; PPO implementations.

    Args:
        advantages: one number a token.
        mask: tokens that count.
        eps: added to the standard deviation, >= 0.
        bessel: divide squares by n - 1 instead of n.
    """
    result = torch.zeros_like(advantages)
    tokens = advantages[mask]
    if tokens.numel() > 0:
        result[mask] = divide_by_std(
            batch_mean_advantages(tokens), batch_std(tokens, bessel=bessel), eps=eps
        )
    return result


def informative_groups(rewards: Rows, group_ids: Groups) -> Bool[Tensor, " B"]:
    """Return True for rows of groups whose scored rewards are not all exactly equal.

    The rest carries no signal for a group baseline: dynamic sampling (DAPO, arXiv:2503.14476,
    section 3.2) replaces those groups, the zero-std filter masks them. A group with fewer than two
    scored rows is not informative.
    """
    shifted, _, index, count = _shifted(rewards, group_ids)
    differs = (shifted != 0).to(rewards.dtype)
    return (_group_sum(differs, index, count) > 0)[index]


def _one_group(rewards: Tensor) -> Tensor:
    return torch.zeros(rewards.shape, dtype=torch.long, device=rewards.device)


def _shifted(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rewards minus the first scored one of their group, 0 where NaN, with three facts.

    These are the validity and the dense group index of each row, and the number of scored rows of
    each group.
    """
    _, index = torch.unique(group_ids, return_inverse=True)
    num_groups = int(index.max()) + 1 if index.numel() else 0
    valid = ~rewards.isnan()
    count = torch.zeros(num_groups, dtype=torch.long, device=rewards.device)
    count.index_add_(0, index, valid.long())
    position = torch.arange(len(rewards), device=rewards.device)
    last = position.new_full((num_groups,), max(len(rewards) - 1, 0))
    first = last.scatter_reduce(0, index[valid], position[valid], "amin")
    anchor = rewards[first][index] if num_groups else rewards
    return torch.where(valid, rewards - anchor, 0.0), valid, index, count


def _group_sum(x: Tensor, index: Tensor, count: Tensor) -> Tensor:
    return torch.zeros(count.shape, dtype=x.dtype, device=x.device).index_add_(0, index, x)
