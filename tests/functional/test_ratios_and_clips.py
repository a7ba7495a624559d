"""Ratios and clips against hand-computed numbers, loops and autograd identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlkit import functional as fn

MASK = torch.tensor([[True, True, True], [True, False, False]])
LOGPS = torch.tensor([[-1.0, -0.5, -2.0], [-0.3, 9.0, 9.0]], dtype=torch.float64)
OLD = torch.tensor([[-1.2, -0.5, -1.5], [-0.1, -9.0, 7.0]], dtype=torch.float64)


def test_log_ratios_by_hand() -> None:
    tokens = fn.log_ratio(LOGPS, OLD, MASK)
    want = torch.tensor([[0.2, 0.0, -0.5], [-0.2, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(tokens, want)
    assert torch.allclose(fn.sequence_log_ratio(tokens, MASK)[:, 0], want.sum(dim=1))
    means = torch.tensor([-0.1, -0.2], dtype=torch.float64)
    assert torch.allclose(fn.mean_log_ratio(tokens, MASK)[:, 0], means)
    assert torch.allclose(
        fn.mean_log_ratio_per_token(tokens, MASK), means[:, None].expand(2, 3) * MASK
    )


def test_attached_denominator_gives_ratio_one_and_gradient_zero() -> None:
    logps = LOGPS.clone().requires_grad_()
    ratio = fn.importance_ratio(fn.log_ratio(logps, logps, MASK))
    (3.0 * ratio).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(ratio.detach(), torch.ones_like(ratio))
    assert logps.grad is not None
    assert torch.equal(logps.grad, torch.zeros_like(LOGPS))


def test_detached_denominator_gives_ratio_one_and_gradient_one() -> None:
    logps = LOGPS.clone().requires_grad_()
    fn.importance_ratio(fn.log_ratio(logps, logps.detach(), MASK)).sum().backward()  # type: ignore[no-untyped-call]
    assert logps.grad is not None
    assert torch.equal(logps.grad, MASK.to(LOGPS.dtype))


def test_huge_log_ratios_stay_finite_with_zero_advantages() -> None:
    ratio = fn.importance_ratio(torch.tensor([[1e4]], dtype=torch.float64))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    loss = fn.clipped_surrogate_loss(ratio, zero, low=0.2, high=0.2)
    assert float(loss) == 0.0
    assert math.isclose(float(ratio), math.exp(30.0))


def derivative(loss_of: object, ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and d loss / d ratio of one token."""
    r = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    assert callable(loss_of)
    loss: Tensor = loss_of(r, a)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert r.grad is not None
    return float(loss.detach()), float(r.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.56, 0.0),
        (0.5, 2.0, -1.0, -2.0),
        (0.9, -2.0, 1.8, 2.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 2.0),
    ],
)
def test_clip_higher_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    got = derivative(
        lambda r, a: fn.clipped_surrogate_loss(r, a, low=0.2, high=0.28), ratio, advantage
    )
    assert got == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize("bound", ["delta", "dual"])
def test_bounds_for_negative_advantages(bound: str) -> None:
    """Both stop at ratio 3 where A < 0 and leave positive advantages alone."""

    def loss(r: Tensor, a: Tensor) -> Tensor:
        if bound == "delta":
            return fn.clipped_surrogate_loss(r, a, low=0.2, high=0.2, delta=3.0)
        return fn.clipped_surrogate_loss(r, a, low=0.2, high=0.2, dual=3.0)

    assert derivative(loss, 2.9, -2.0) == pytest.approx((5.8, 2.0))
    assert derivative(loss, 4.0, -2.0) == pytest.approx((6.0, 0.0))
    assert derivative(loss, 4.0, 2.0) == pytest.approx((-2.4, 0.0))


def test_cispo_bounds_the_weight_and_keeps_every_gradient() -> None:
    logps = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor([[0.1, 1.0, 9.0]], dtype=torch.float64)
    advantages = torch.full((1, 3), 2.0, dtype=torch.float64)
    fn.cispo_loss(ratio, logps, advantages, low=0.5, high=4.0).sum().backward()  # type: ignore[no-untyped-call]
    assert logps.grad is not None
    want = torch.tensor([[-1.0, -2.0, -10.0]], dtype=torch.float64)
    assert torch.allclose(logps.grad, want)


@pytest.mark.parametrize(("advantage", "tau"), [(1.0, 1.0), (-1.0, 1.05)])
def test_soft_gate_has_slope_one_at_ratio_one(advantage: float, tau: float) -> None:
    def loss(r: Tensor, a: Tensor) -> Tensor:
        return fn.sapo_loss(r, a, tau_positive=1.0, tau_negative=1.05)

    value, slope = derivative(loss, 1.0, advantage)
    assert slope == pytest.approx(-advantage)
    assert value == pytest.approx(-advantage * 2.0 / tau)
    assert abs(derivative(loss, 6.0, advantage)[1]) < 0.03


def test_gmpo_by_hand() -> None:
    """A > 0: log-ratios above 0.4 count as 0.4, those below -0.4 stay."""
    log_ratio = torch.tensor([[0.9, -0.9, 0.1]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    ones = torch.ones(1, 3, dtype=torch.float64)
    positive = fn.clipped_mean_log_ratio(log_ratio, ones, mask, low=0.4, high=0.4)
    negative = fn.clipped_mean_log_ratio(log_ratio, -ones, mask, low=0.4, high=0.4)
    assert float(positive) == pytest.approx((0.4 - 0.9 + 0.1) / 3)
    assert float(negative) == pytest.approx((0.9 - 0.4 + 0.1) / 3)


@given(
    ratio=st.floats(0.01, 10.0),
    advantage=st.floats(-5.0, 5.0),
    low=st.floats(0.0, 1.0),
    high=st.floats(0.0, 2.0),
)
def test_clipping_is_pessimistic(ratio: float, advantage: float, low: float, high: float) -> None:
    """The clipped loss is never below the unclipped one and equals it inside the range."""
    r = torch.tensor([[ratio]], dtype=torch.float64)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    clipped, plain = (
        fn.clipped_surrogate_loss(r, a, low=low, high=high),
        fn.surrogate_loss(r, a),
    )
    assert float(clipped) >= float(plain) - 1e-12
    if 1 - low <= ratio <= 1 + high:
        assert torch.equal(clipped, plain)


SPREAD = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)[None]


def gradient_of(value: Tensor, logps: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(value.sum(), logps)
    return result


def test_per_sample_identities_of_the_estimators() -> None:
    """d(w k3) = d(sg(w) k2) = w (q - p) and d(exp(q) k3) = Q (q - p), token by token."""
    q = (-1.0 + 0.3 * SPREAD).requires_grad_()
    p, old = -1.0 - SPREAD.detach(), -1.1 + 0.2 * SPREAD.flip(1)
    w = fn.importance_ratio(q - old)
    live = gradient_of(fn.times_live_ratio(fn.reverse_k3(q, p), q - old), q)
    detached = gradient_of(w.detach() * fn.reverse_k2(q, p), q)
    want = (w * (q - p)).detach()
    assert float((live - want).abs().max()) < 4e-15
    assert float((detached - want).abs().max()) < 4e-15
    full = gradient_of(fn.unsloth_full_reverse(q, p), q)
    assert float((full - (q.exp() * (q - p)).detach()).abs().max()) < 1e-15


def test_estimators_by_hand() -> None:
    """q = log 0.5, p = log 0.25, so u = 1/2."""
    q = torch.full((1, 1), 0.5, dtype=torch.float64).log()
    p = torch.full((1, 1), 0.25, dtype=torch.float64).log()
    ln2 = math.log(2.0)
    want = {
        fn.reverse_k1: ln2,
        fn.reverse_k2: ln2**2 / 2,
        fn.reverse_k3: ln2 - 0.5,
        fn.forward_k1: -ln2 / 2,
        fn.forward_k3: 0.5 - ln2 / 2,
        fn.unsloth_full_reverse: 0.5 * (ln2 - 0.5),
        fn.unsloth_forward: -0.25 * ln2,
        fn.unsloth_log_weighted: -ln2 * (ln2 - 0.5),
    }
    for function, value in want.items():
        assert float(function(q, p)) == pytest.approx(value, abs=1e-15), function.__name__


@pytest.mark.parametrize("d", [1e-2, 1e-3, 1e-4])
def test_k3_is_accurate_in_float32(d: float) -> None:
    """The naive exp(d) - d - 1 loses all digits at 1e-4; expm1 keeps 3 at least."""
    ref, logps = torch.tensor([[d]]), torch.zeros(1, 1)
    exact = math.expm1(d) - d
    assert float(fn.reverse_k3(logps, ref)) == pytest.approx(exact, rel=2e-3)
    if d == 1e-4:
        naive = torch.tensor(d).exp() - torch.tensor(d) - 1
        assert abs(float(naive) / exact - 1) > 0.5


@given(q=st.floats(-5.0, -0.01), p=st.floats(-5.0, -0.01))
def test_k3_is_never_negative(q: float, p: float) -> None:
    logps, ref = (torch.tensor([[x]], dtype=torch.float64) for x in (q, p))
    assert float(fn.reverse_k3(logps, ref)) >= 0.0
    assert float(fn.forward_k3(logps, ref)) >= -1e-15
