"""Aggregation, sampler correction, shaping, critic and preference functions against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import loop_gae
from torch import Tensor

from rlkit import functional as fn
from rlkit.functional import future_sum, keep, sum_to_go

NAN, INF = float("nan"), float("inf")
X = torch.tensor([[1.0, 2.0, 4.0], [8.0, NAN, INF], [NAN, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_aggregations_by_hand() -> None:
    """Rows of 3, 1 and 0 tokens with losses 1 2 4 | 8 |."""
    assert float(fn.token_mean(X, MASK, 4)) == 15 / 4
    assert float(fn.sequence_mean(X, MASK, 2)) == pytest.approx((7 / 3 + 8) / 2)
    assert float(fn.sequence_sum(X, MASK, 2)) == 15 / 2
    assert float(fn.constant_length_mean(X, MASK, 2, 10)) == 15 / 20
    assert float(fn.microbatch_token_mean(X, MASK, 2)) == 15 / 4


def test_microbatch_token_mean_depends_on_the_split() -> None:
    """Row by row it is the sequence mean; TRL's bnpo likewise."""
    parts = [fn.microbatch_token_mean(X[i : i + 1], MASK[i : i + 1], 2) for i in range(3)]
    assert float(torch.stack(parts).sum()) == pytest.approx((7 / 3 + 8) / 2)


def test_sums_to_go() -> None:
    assert sum_to_go(X, MASK).tolist() == [[7.0, 6.0, 4.0], [8.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert future_sum(X, MASK).tolist() == [[6.0, 4.0, 0.0], [0.0] * 3, [0.0] * 3]


def test_kept_values_have_gradients_and_others_none() -> None:
    x = X.clone().requires_grad_()
    keep(x, MASK).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, MASK.to(X.dtype))


LOGPS = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, NAN, INF]], dtype=torch.float64)
SAMPLING = torch.tensor([[-1.5, NAN, -0.8], [-2.0, 5.0, NAN]], dtype=torch.float64)
KEPT = torch.tensor([[True, True, True], [True, False, False]])


def test_sampler_log_ratio_ignores_missing_logps() -> None:
    d = fn.sampler_log_ratio(LOGPS, SAMPLING, KEPT)
    want = torch.tensor([[0.5, 0.0, -0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(d, want)


def test_cuts_of_the_weights() -> None:
    weight = torch.tensor([[0.2, 0.5, 1.0, 2.0, 3.0]], dtype=torch.float64)
    cut = fn.truncate_weights(weight, low=0.5, high=2.0)
    assert cut.tolist() == [[0.5, 0.5, 1.0, 2.0, 2.0]]
    dropped = fn.mask_weights(weight, low=0.5, high=2.0)
    assert dropped.tolist() == [[0.0, 0.5, 1.0, 2.0, 0.0]]


def test_mismatch_metrics_by_hand() -> None:
    """Four tokens with d = 0.5, 0, -0.2, 0 in rows of 3 and 1."""
    metrics = fn.sampling_mismatch(LOGPS, SAMPLING, KEPT)
    d = [0.5, 0.0, -0.2, 0.0]
    w = [math.exp(x) for x in d]
    want = {
        "sampling/sampling_logp_difference/mean": 0.7 / 4,
        "sampling/sampling_logp_difference/max": 0.5,
        "sampling/importance_sampling_ratio/min": math.exp(-0.2),
        "sampling/importance_sampling_ratio/mean": sum(w) / 4,
        "sampling/importance_sampling_ratio/max": math.exp(0.5),
        "sampling/kl_k1": -0.3 / 4,
        "sampling/kl": sum(x - 1 - y for x, y in zip(w, d, strict=True)) / 4,
        "sampling/ess": sum(w) ** 2 / (4 * sum(x * x for x in w)),
        "sampling/sequence_ess": (math.exp(0.3) + 1) ** 2 / (2 * (math.exp(0.6) + 1)),
        "sampling/nan_fraction": 0.25,
    }
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(want)
    assert fn.sampling_mismatch(LOGPS, SAMPLING, KEPT & False) == {}


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20), st.floats(-5, 5))
def test_effective_sample_size_is_a_share_and_scale_free(
    log_weights: list[float], shift: float
) -> None:
    d = torch.tensor(log_weights, dtype=torch.float64)
    ess = float(fn.effective_sample_size(d))
    assert 1 / len(log_weights) - 1e-9 <= ess <= 1 + 1e-9
    assert float(fn.effective_sample_size(d + shift)) == pytest.approx(ess)


def test_overlong_penalty_is_linear_in_the_buffer() -> None:
    """DAPO eq. 13 with limit 10 and buffer 4: free up to 6, -1/2 at 8, -1 at 10."""
    mask = torch.arange(10)[None] < torch.tensor([3, 6, 7, 8, 10])[:, None]
    got = fn.overlong_penalty(mask, max_length=10, buffer=4.0, scale=1.0)
    assert got.tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0])


def test_high_entropy_mask_keeps_the_asked_share() -> None:
    entropy = torch.arange(20, dtype=torch.float64).view(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[3] = False
    kept = fn.high_entropy_mask(entropy, mask, fraction=0.2)
    assert kept.nonzero().tolist() == [[2, 2], [2, 3], [2, 4]]
    assert not bool(fn.high_entropy_mask(entropy, mask & False, fraction=0.2).any())


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_gae_is_its_double_sum(rewards: list[float], gamma: float, lam: float) -> None:
    critic = [math.sin(3.0 * i) for i in range(len(rewards))]
    pad = [NAN, 7.0]
    mask = torch.tensor([[True] * len(rewards) + [False, False]])
    row = [torch.tensor([x + pad], dtype=torch.float64) for x in (rewards, critic)]
    result = fn.gae(row[0], row[1], mask, gamma=gamma, lam=lam)
    want = loop_gae(rewards, critic, gamma=gamma, lam=lam)
    n = len(rewards)
    assert result.advantages[0, :n].tolist() == pytest.approx(want, abs=1e-12)
    assert result.returns[0, :n].tolist() == pytest.approx(
        [a + v for a, v in zip(want, critic, strict=True)], abs=1e-12
    )
    assert result.advantages[0, n:].tolist() == [0.0, 0.0]


def test_gae_by_hand() -> None:
    """One reward at the end, gamma = lam = 1: the advantage is R - V_t everywhere."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    reward = fn.terminal_rewards(torch.tensor([2.0]), mask)
    assert reward.tolist() == [[0.0, 0.0, 2.0]]
    result = fn.gae(reward, torch.tensor([[0.5, 1.0, 1.5]]), mask, gamma=1.0, lam=1.0)
    assert result.advantages.tolist() == [[1.5, 1.0, 0.5]]
    assert result.returns.tolist() == [[2.0, 2.0, 2.0]]


def test_terminal_rewards_sit_on_the_last_kept_token() -> None:
    rewards = torch.tensor([3.0, NAN, 5.0])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    want = [[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert fn.terminal_rewards(rewards, mask).tolist() == want


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [(1.1, 0.405, -0.9), (1.5, 0.32, 0.0), (0.5, 1.125, -1.5)],
)
def test_value_loss_by_hand(value: float, loss: float, slope: float) -> None:
    """V_old = 1, R = 2, clip 0.2: beyond 1.2 the clipped square, 0.32, is the larger one."""
    v = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old, returns = (torch.tensor([[x]], dtype=torch.float64) for x in (1.0, 2.0))
    got = fn.value_loss(v, old, returns, clip=0.2)
    got.sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert float(got.detach()) == pytest.approx(loss)
    assert float(v.grad) == pytest.approx(slope)


def test_explained_variance() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    returns = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(fn.explained_variance(returns, returns, mask)) == 1.0
    assert float(fn.explained_variance(returns * 0 + 2.5, returns, mask)) == 0.0
    assert float(fn.explained_variance(returns / 2, returns, mask)) == pytest.approx(0.75)
    assert math.isnan(float(fn.explained_variance(returns, returns * 0, mask)))


def test_preference_losses_by_hand() -> None:
    h = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    plain = [-math.log(logistic(0.5)), -math.log(logistic(-1.0))]
    assert fn.dpo_loss(h, beta=0.5).tolist() == pytest.approx(plain)
    smooth = [
        -0.9 * math.log(logistic(0.5 * x)) - 0.1 * math.log(logistic(-0.5 * x)) for x in (1.0, -2.0)
    ]
    got = fn.dpo_loss(h, beta=0.5, label_smoothing=0.1)
    assert got.tolist() == pytest.approx(smooth)
    assert fn.ipo_loss(h, beta=0.5).tolist() == pytest.approx([0.0, 9.0])
    assert fn.hinge_loss(h, beta=0.5).tolist() == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize(
    ("rewards", "best", "ranked", "neighbours"),
    [
        ([0.0, 3.0, 1.0, 2.0], [1, 0], [1, 0, 3, 2], [1, 0, 3, 2]),
        ([1.0, 1.0, 1.0, 1.0], [0, 3], [0, 3, 1, 2], [0, 1, 2, 3]),
        ([NAN, 1.0, 2.0, 0.0], [2, 3], [2, 0, 1, 3], [1, 0, 2, 3]),
        ([1.0, 1.0], [0, 1], [0, 1], [0, 1]),
        ([5.0, 6.0, 7.0], [2, 0], [2, 0], [1, 0]),
    ],
)
def test_pair_rules_by_hand(
    rewards: list[float], best: list[int], ranked: list[int], neighbours: list[int]
) -> None:
    r = torch.tensor(rewards)
    assert fn.best_worst_pair(r).tolist() == best
    assert fn.ranked_pairs(r).tolist() == ranked
    got = fn.neighbour_pairs(r).tolist()
    if not any(math.isnan(x) for x in rewards):
        assert got == neighbours


def masks(rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    cells = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    return cells.map(lambda x: torch.tensor(x).view(rows, columns))


@given(masks(3, 4))
def test_any_mask_gives_the_loop_result(mask: Tensor) -> None:
    x = torch.arange(12, dtype=torch.float64).view(3, 4) ** 1.5
    rows = [[float(x[i, t]) for t in range(4) if mask[i, t]] for i in range(3)]
    filled = [row for row in rows if row]
    tokens, sequences = max(sum(map(len, rows)), 1), max(len(filled), 1)
    total = sum(map(sum, rows))
    means = sum(sum(row) / len(row) for row in filled)
    assert float(fn.token_mean(x, mask, tokens)) == pytest.approx(total / tokens)
    assert float(fn.sequence_mean(x, mask, sequences)) == pytest.approx(means / sequences)
    assert float(fn.sequence_sum(x, mask, sequences)) == pytest.approx(total / sequences)
