"""Baselines and scales against loops; properties that must hold for any rewards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import loop_group_advantages
from torch import Tensor

from rlkit import functional as fn

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.3, -2.0, 0.7, 0.1], dtype=torch.float64)
GROUPS = torch.arange(8) // 4


def grpo(rewards: Tensor, groups: Tensor, *, eps: float, bessel: bool) -> Tensor:
    std = fn.group_std(rewards, groups, bessel=bessel)
    return fn.divide_by_std(fn.group_mean_advantages(rewards, groups), std, eps=eps)


@pytest.mark.parametrize("bessel", [True, False])
@pytest.mark.parametrize("eps", [1e-4, 1e-6])
def test_group_z_score_against_a_loop(bessel: bool, eps: float) -> None:
    want = loop_group_advantages(REWARDS.tolist(), 4, eps=eps, bessel=bessel)
    got = grpo(REWARDS, GROUPS, eps=eps, bessel=bessel)
    assert got.tolist() == pytest.approx(want, abs=1e-14)


def test_group_z_score_by_hand() -> None:
    """Rewards 1 0 0 1: mean 1/2, Bessel std 1/sqrt(3)."""
    got = grpo(REWARDS[:4], GROUPS[:4], eps=0.0, bessel=True)
    half = math.sqrt(3) / 2
    assert got.tolist() == pytest.approx([half, -half, -half, half], abs=1e-15)


def test_leave_one_out_against_a_loop() -> None:
    got = fn.leave_one_out_advantages(REWARDS, GROUPS).tolist()
    for i, reward in enumerate(REWARDS.tolist()):
        group = REWARDS[GROUPS[i] == GROUPS].tolist()
        assert got[i] == pytest.approx(reward - (sum(group) - reward) / 3, abs=1e-15)


def test_binary_groups_of_two_grpo_is_leave_one_out_scaled() -> None:
    rewards, groups = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2).long()
    loo = fn.leave_one_out_advantages(rewards, groups)
    bessel = grpo(rewards, groups, eps=0.0, bessel=True)
    assert torch.allclose(grpo(rewards, groups, eps=0.0, bessel=False), loo)
    assert torch.allclose(bessel, loo / math.sqrt(2))


def test_missing_rewards_leave_every_statistic() -> None:
    """NaN in a group of four: the other three are treated as a group of three, and it gets 0."""
    rewards = REWARDS.clone()
    rewards[5] = torch.nan
    kept = torch.tensor([4, 6, 7])
    for function in (fn.group_mean_advantages, fn.leave_one_out_advantages):
        got = function(rewards, GROUPS)
        assert float(got[5]) == 0.0
        assert torch.allclose(got[kept], function(rewards[kept], GROUPS[kept]))
    std = fn.group_std(rewards, GROUPS, bessel=True)
    assert float(std[4]) == pytest.approx(float(rewards[kept].std()))


def test_batch_statistics_against_torch() -> None:
    assert torch.allclose(fn.batch_mean_advantages(REWARDS), REWARDS - REWARDS.mean())
    assert torch.allclose(fn.batch_std(REWARDS, bessel=True), REWARDS.std().expand(8))
    assert torch.allclose(fn.batch_std(REWARDS, bessel=False), REWARDS.std(unbiased=False))


def test_whitened_tokens_have_mean_zero_and_deviation_one() -> None:
    tokens = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor([5, 1, 3, 0])[:, None]
    white = fn.whiten_tokens(tokens, mask, eps=0.0, bessel=True)
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-15)
    assert float(white[mask].std()) == pytest.approx(1.0)
    assert float(white[~mask].abs().sum()) == 0.0
    want = (tokens[mask] - tokens[mask].mean()) / tokens[mask].std()
    assert torch.allclose(white[mask], want)


def test_gdpo_keeps_a_small_reward_visible() -> None:
    """Correctness (0/1) beside a format reward of a tenth: after GDPO both spread equally."""
    components = torch.tensor([[1.0, 0.0], [0.0, 0.1], [1.0, 0.1], [0.0, 0.0]], dtype=torch.float64)
    weights, groups = torch.ones(2, dtype=torch.float64), torch.zeros(4).long()
    got = fn.gdpo_advantages(components, weights, groups, eps=0.0, bessel=True)
    z = math.sqrt(3) / 2
    total = [0.0, 0.0, 2 * z, -2 * z]
    scale = math.sqrt(sum(x * x for x in total) / 3)
    assert got.tolist() == pytest.approx([x / scale for x in total], abs=1e-14)


def test_gdpo_with_missing_components() -> None:
    components = torch.tensor(
        [[1.0, torch.nan], [0.0, 0.5], [torch.nan, torch.nan], [1.0, 0.1]], dtype=torch.float64
    )
    got = fn.gdpo_advantages(
        components,
        torch.ones(2, dtype=torch.float64),
        torch.zeros(4).long(),
        eps=1e-4,
        bessel=True,
    )
    assert float(got[2]) == 0.0
    assert got.isfinite().all()
    assert float(got[[0, 1, 3]].sum()) == pytest.approx(0.0, abs=1e-12)


groups_of_rewards = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5), min_size=1, max_size=4
)


def flat(groups: list[list[float]]) -> tuple[Tensor, Tensor]:
    ids = [i for i, group in enumerate(groups) for _ in group]
    rewards = torch.tensor([r for group in groups for r in group], dtype=torch.float64)
    return rewards, torch.tensor(ids)


@given(groups_of_rewards, st.floats(-100, 100))
def test_advantages_ignore_a_constant(groups: list[list[float]], constant: float) -> None:
    rewards, ids = flat(groups)
    for function in (fn.group_mean_advantages, fn.leave_one_out_advantages):
        moved = function(rewards + constant, ids)
        assert torch.allclose(moved, function(rewards, ids), atol=1e-9)


@given(groups_of_rewards)
def test_advantages_of_a_group_sum_to_zero(groups: list[list[float]]) -> None:
    rewards, ids = flat(groups)
    for values in (
        fn.group_mean_advantages(rewards, ids),
        fn.leave_one_out_advantages(rewards, ids),
    ):
        for i in range(len(groups)):
            assert abs(float(values[ids == i].sum())) < 1e-9


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 7))
def test_equal_rewards_give_exactly_zero_in_float32(reward: float, size: int) -> None:
    rewards = torch.full((size,), reward)
    ids = torch.zeros(size).long()
    got = grpo(rewards, ids, eps=1e-4, bessel=True)
    assert torch.equal(got, torch.zeros(size))
    assert torch.equal(fn.leave_one_out_advantages(rewards, ids), torch.zeros(size))
    assert not bool(fn.informative_groups(rewards, ids).any())


@given(groups_of_rewards)
def test_informative_groups_are_those_that_differ(groups: list[list[float]]) -> None:
    rewards, ids = flat(groups)
    want = [len(set(group)) > 1 for group in groups for _ in group]
    assert fn.informative_groups(rewards, ids).tolist() == want


@given(groups_of_rewards)
def test_order_of_rows_does_not_matter(groups: list[list[float]]) -> None:
    rewards, ids = flat(groups)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(1))
    got = grpo(rewards[order], ids[order], eps=1e-4, bessel=True)
    assert torch.allclose(got, grpo(rewards, ids, eps=1e-4, bessel=True)[order], atol=1e-7)
