"""Estimators are measured against these gradients, which autograd takes of exact sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlkit.oracle.expectation import World
from rlkit.oracle.tree import full_kl_of, logps_of, probabilities


def gradient(w: World, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (d,) gradient of `function`, a function of the policy's log-probabilities (S, V)."""
    theta = w.theta.detach().requires_grad_()
    (result,) = torch.autograd.grad(function(w.model.table(theta)), theta)
    return result


def expected_reward(w: World) -> Callable[[Tensor], Tensor]:
    """Return J = sum_y pi(y) R(y)."""
    return lambda table: (probabilities(w.tree, table) * w.rewards).sum()


def reverse_sequence(w: World) -> Callable[[Tensor], Tensor]:
    """Return KL(pi || ref) of whole completions, prefixes included."""
    return lambda table: (
        probabilities(w.tree, table)
        * (logps_of(w.tree, table) - logps_of(w.tree, w.ref_table)).sum(dim=1)
    ).sum()


def reverse_token(w: World) -> Callable[[Tensor], Tensor]:
    """Return the sum over tokens of KL(pi || ref), at the behaviour policy's fixed prefixes."""
    visits = probabilities(w.tree, w.behaviour)[:, None]
    return lambda table: (visits * full_kl_of(w.tree, table, w.ref_table)).sum()


def forward_token(w: World) -> Callable[[Tensor], Tensor]:
    """Return the sum over tokens of KL(ref || pi), at the behaviour policy's fixed prefixes."""
    visits = probabilities(w.tree, w.behaviour)[:, None]
    return lambda table: (visits * full_kl_of(w.tree, w.ref_table, table)).sum()


def relative_error(gradient: Tensor, target: Tensor) -> float:
    """Return |g - t| / |t|."""
    return float((gradient - target).norm() / target.norm())


def cosine(gradient: Tensor, target: Tensor) -> float:
    """Return the cosine of the angle between two gradients; 0 if either vanishes."""
    norms = float(gradient.norm() * target.norm())
    return float(gradient @ target) / norms if norms > 0.0 else 0.0
