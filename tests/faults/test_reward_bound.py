"""Rewards at the bound of 1e6 teach what they should: the gradient is that of exact arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from oracles import leaf_outputs, random_rollout, setting

from rlkit.algorithms import build
from rlkit.oracle.compose import composed
from rlkit.types import PolicyOutput, RolloutBatch

REWARDS = (1_000_000, -1_000_000, 999_999, 0)
LENGTHS = (2, 3, 1, 4)
# By hand: the mean is 249,999.75. The squares of the distances add up to
# 562500375000.0625 + 1562499375000.0625 + 562498875000.5625 + 62499875000.0625 =
# 2749998500000.75, a third of which is the variance: 957426.84 squared.
STD = 957426.8461
GRPO = tuple((r - 249_999.75) / (STD + 1e-4) for r in REWARDS)
RLOO = tuple(float(r - Fraction(sum(REWARDS) - r, 3)) for r in REWARDS)


def batch(rewards: tuple[float, ...]) -> RolloutBatch:
    """One group whose rewards are these, in float32 as a run has them."""
    made = random_rollout(lengths=LENGTHS, group_size=4)
    values = torch.tensor(rewards, dtype=torch.float32)
    components = torch.stack([values, torch.zeros(4)], dim=1)
    return replace(made, rewards=values, reward_components=components)


def gradient(name: str, rewards: tuple[float, ...], *overrides: str) -> torch.Tensor:
    objective = composed(
        f"algorithm={name}",
        *("algorithm.group_size=4", "kl=none", "algorithm.aggregation=sequence_mean"),
        *overrides,
    )
    algorithm = build(objective, setting(group_size=4))
    prepared = algorithm.prepare(batch(rewards))
    out = leaf_outputs(prepared.rollout)
    # On the policy that sampled: every ratio is 1.
    assert prepared.rollout.old_logps is not None
    logps = prepared.rollout.old_logps.detach().clone().requires_grad_()
    loss = algorithm.loss(PolicyOutput(logps, *out[1:]), prepared).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert logps.grad is not None
    return logps.grad


@pytest.mark.parametrize(("name", "advantages"), [("grpo", GRPO), ("rloo", RLOO)])
def test_the_gradient_at_the_bound_is_that_by_hand(
    name: str, advantages: tuple[float, ...]
) -> None:
    """A token of a row of n has -A / (4 n), a mean over tokens and rows; RLOO sums over tokens."""
    found = gradient(name, REWARDS)
    expected = torch.zeros_like(found)
    for row, (advantage, length) in enumerate(zip(advantages, LENGTHS, strict=True)):
        expected[row, :length] = -advantage / (4 * (1 if name == "rloo" else length))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_a_difference_of_one_at_the_bound_is_seen() -> None:
    """float32 has steps of 1/16 there; 1e6 and 1e6 - 1 must not be equal."""
    found = gradient("rloo", (1_000_000, 999_999, 1_000_000, 1_000_000))
    assert found[1, 0] == 0.25  # the advantage is -1 by hand, and float32 has it exactly
    torch.testing.assert_close(found[0, :2], torch.full_like(found[0, :2], -1 / 12))
