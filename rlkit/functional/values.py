"""The critic's side of PPO: generalised advantage estimation, value loss, explained variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import keep

Tokens = Float[Tensor, "B C"]


class GAE(NamedTuple):
    """Advantages and the critic's targets; 0.0 where the mask is False."""

    advantages: Float[Tensor, "B C"]
    returns: Float[Tensor, "B C"]


def terminal_rewards(rewards: Float[Tensor, " B"], mask: Bool[Tensor, "B C"]) -> Tokens:
    """Put each row's reward on its last kept token, 0.0 elsewhere; NaN rewards become 0.0."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return last * rewards.nan_to_num(nan=0.0)[:, None]


def gae(
    token_rewards: Tokens, values: Tokens, mask: Bool[Tensor, "B C"], *, gamma: float, lam: float
) -> GAE:
    """Return generalised advantage estimates A and the critic's targets A + V.

    A_t = sum_k (gamma lam)^k delta_{t+k} with delta_t = r_t + gamma V_{t+1} - V_t. V after the last
    token is 0, also for truncated rows: their reward is final here. lam = 1 is unbiased for any
    critic, lam < 1 only for the exact one. Source: arXiv:1506.02438, eq. 16.

    Args:
        token_rewards: one reward a token.
        values: the critic's value before each token; no gradient flows into it.
        mask: tokens that count; others are skipped, not counted as steps.
        gamma: discount per token, in (0, 1].
        lam: trace decay, in [0, 1].
    """
    rewards, values = keep(token_rewards, mask), keep(values.detach(), mask)
    running = next_value = torch.zeros_like(values[:, 0])
    columns: list[Tensor] = []
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(running)
    advantages = keep(torch.stack(columns[::-1], dim=1), mask)
    return GAE(advantages, keep(advantages + values, mask))


def value_loss(
    values: Tokens, old_values: Tokens, returns: Tokens, *, clip: float | None
) -> Tokens:
    """Return 0.5 max((V - R)^2, (clip(V, V_old +- clip) - R)^2) per token.

    There is no gradient once V has left the interval on the side of its target. Source: PPO2
    (OpenAI baselines), TRL 1.12, verl.

    Args:
        values: the critic's value now.
        old_values: its value when the completion was sampled.
        returns: its targets.
        clip: half width of the interval, > 0; None gives 0.5 (V - R)^2.
    """
    squares = (values - returns).square()
    if clip is not None:
        clipped = torch.clamp(values, old_values - clip, old_values + clip)
        squares = torch.maximum(squares, (clipped - returns).square())
    return 0.5 * squares


def explained_variance(
    values: Tokens, returns: Tokens, mask: Bool[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Return 1 - Var(R - V) / Var(R) over kept tokens of one whole batch.

    1 is a perfect critic, 0 a useless one, and NaN means that the returns do not vary. Values do
    not add up over micro-batches.
    """
    kept = returns[mask]
    if kept.numel() == 0:  # torch would warn of it
        return kept.new_full((), torch.nan)
    variance = kept.var(unbiased=False)
    residual = (kept - values[mask]).var(unbiased=False)
    return torch.where(variance > 0, 1.0 - residual / variance, torch.nan)
