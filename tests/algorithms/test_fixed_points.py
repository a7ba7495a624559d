"""Where each regularised objective comes to rest, on a bandit with eight words.

Maximising E[R] - beta * D, the shipped loss must have zero expected gradient at the closed-form
optimum of the divergence whose gradient it has, and a clearly nonzero one at the other's.
"""

from __future__ import annotations

import pytest
import torch
from oracles import objective, setting
from torch import Tensor

from rlkit.algorithms import KLConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.kl import KLEstimator, KLGradient, KLPlacement
from rlkit.oracle.expectation import World, expected_gradient
from rlkit.oracle.tree import enumerate_tree, tabular, waves
from rlkit.types import KLDirection

NUM_WORDS = 8
BETA = 0.5


def bandit(policy: Tensor) -> World:
    """One-word completions; word w has reward `REWARDS[w]` and reference probability `REF[w]`."""
    tree = enumerate_tree(vocabulary=NUM_WORDS, max_length=1)
    model = tabular(tree)
    theta = policy.log()
    table = model.table(theta)
    return World(tree, model, theta, REF.log()[None], table, REWARDS[tree.ids[:, 0]])


REF = waves(NUM_WORDS, phase=3.0, scale=1.0).softmax(dim=0)
REWARDS = (waves(NUM_WORDS, phase=1.0, scale=0.5) + 0.5).round(decimals=3)


def gibbs() -> Tensor:
    """ref exp(R/beta) / Z: the optimum of E[R] - beta KL(pi || ref)."""
    weights = REF * torch.exp(REWARDS / BETA)
    return weights / weights.sum()


def forward_optimum() -> Tensor:
    """beta ref / (lambda - R), lambda > max R such that it sums to 1: that of KL(ref || pi)."""
    low, high = REWARDS.max(), REWARDS.max() + 10.0
    for _ in range(200):
        middle = (low + high) / 2
        total = (BETA * REF / (middle - REWARDS)).sum()
        low, high = (middle, high) if total > 1 else (low, middle)
    return BETA * REF / (high - REWARDS)


def residual(policy: Tensor, kl: KLConfig) -> float:
    cfg = GRPOConfig(
        group_size=1,
        aggregation=Aggregation.sequence_sum,
        advantage=AdvantageConfig(baseline=Baseline.none, scale=Scale.none),
    )
    algorithm = build(objective(cfg, kl=kl), setting(group_size=1))
    return float(expected_gradient(bandit(policy), algorithm).norm())


REVERSE = [
    KLConfig(beta=BETA, estimator=KLEstimator.k2),
    KLConfig(beta=BETA, estimator=KLEstimator.k3, gradient=KLGradient.score_function),
    KLConfig(beta=BETA, estimator=KLEstimator.k3, gradient=KLGradient.straight_through),
    KLConfig(beta=BETA, estimator=KLEstimator.k1, placement=KLPlacement.reward),
    KLConfig(beta=BETA, estimator=KLEstimator.k1, placement=KLPlacement.advantage),
    KLConfig(beta=BETA, estimator=KLEstimator.exact),
]
FORWARD = [
    KLConfig(beta=BETA, estimator=KLEstimator.k3),
    KLConfig(
        beta=BETA,
        direction=KLDirection.forward,
        estimator=KLEstimator.k3,
        gradient=KLGradient.score_function,
    ),
    KLConfig(beta=BETA, direction=KLDirection.forward, estimator=KLEstimator.exact),
]
NEITHER = [
    KLConfig(beta=BETA, estimator=KLEstimator.k1),
    KLConfig(beta=BETA, estimator=KLEstimator.k3, placement=KLPlacement.reward),
    KLConfig(beta=BETA, estimator=KLEstimator.unsloth_full_reverse),
    KLConfig(beta=BETA, direction=KLDirection.forward, estimator=KLEstimator.unsloth_forward),
]


def test_optima_are_distributions_and_differ() -> None:
    assert abs(float(gibbs().sum()) - 1) < 1e-12
    assert abs(float(forward_optimum().sum()) - 1) < 1e-12
    assert float((gibbs() - forward_optimum()).abs().max()) > 0.01


@pytest.mark.parametrize("kl", REVERSE)
def test_reverse_kl_rests_at_the_gibbs_distribution(kl: KLConfig) -> None:
    assert residual(gibbs(), kl) <= 1e-12
    assert residual(forward_optimum(), kl) > 1e-3


@pytest.mark.parametrize("kl", FORWARD)
def test_forward_kl_rests_elsewhere(kl: KLConfig) -> None:
    """k3 in the loss, called a reverse KL everywhere, has the forward KL's optimum."""
    assert residual(forward_optimum(), kl) <= 1e-12
    assert residual(gibbs(), kl) > 1e-3


@pytest.mark.parametrize("kl", NEITHER)
def test_the_rest_has_neither_optimum(kl: KLConfig) -> None:
    assert residual(gibbs(), kl) > 1e-3
    assert residual(forward_optimum(), kl) > 1e-3
