# mypy: disable-error-code="no-untyped-call"
"""`kl_exact` against the definition in float64, differentiated by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from triton_places import INTERPRETED

from rlkit.kernels import reference
from rlkit.kernels.kl import Direction, kl_exact
from rlkit.kernels.lm_head import LogitMap
from rlkit.types import KLDirection

MAPS = {
    "plain": LogitMap(),
    "hot": LogitMap(temperature=1.7, logit_scale=0.6),
    "softcap": LogitMap(softcap=3.0, temperature=0.8),
}


DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))  # type: ignore[arg-type]


def inputs(dtype: torch.dtype, distance: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of policy and reference `distance` apart, weights, bias and upstream."""
    gen = torch.Generator().manual_seed(3)
    hidden = torch.randn(29, 24, generator=gen)
    ref = hidden + distance * torch.randn(29, 24, generator=gen)
    weight, bias = torch.randn(157, 24, generator=gen), torch.randn(157, generator=gen)
    upstream = torch.randn(29, generator=gen) * torch.logspace(-2, 2, 29)
    return hidden.to(dtype), ref.to(dtype), weight.to(dtype), bias, upstream


def truth(
    hidden: Tensor,
    ref: Tensor,
    weight: Tensor,
    logit_map: LogitMap,
    direction: Direction,
    top_k: int | None,
) -> tuple[Tensor, Tensor]:
    leaf = hidden.double().requires_grad_()
    bias = None if logit_map.bias is None else logit_map.bias.double()
    exact_map = logit_map._replace(bias=bias)
    z = reference.logits(leaf, weight.double(), exact_map)
    ref_z = reference.logits(ref.double(), weight.double(), exact_map)
    kl = reference.kl(z, ref_z, reverse=direction == Direction.reverse, top_k=top_k)
    (jacobian,) = torch.autograd.grad(kl.sum(), leaf)
    return kl.detach(), jacobian


@pytest.mark.parametrize("distance", [0.02, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 16, 156, 200])
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients(
    device: str,
    dtype: torch.dtype,
    map_name: str,
    direction: Direction,
    top_k: int | None,
    distance: float,
) -> None:
    hidden, ref, weight, bias, upstream = (x.to(device) for x in inputs(dtype, distance))
    logit_map = MAPS[map_name]._replace(bias=bias)
    kl, jacobian = truth(hidden, ref, weight, logit_map, direction, top_k)
    leaf = hidden.clone().requires_grad_()
    out = kl_exact(
        leaf,
        ref,
        weight,
        direction=direction,
        top_k=top_k,
        **logit_map._asdict(),
        workspace_bytes=7 * 157 * 24,  # chunks of seven rows
    )
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), kl, rtol=2e-4, atol=1e-8)
    (out * upstream).sum().backward()
    assert leaf.grad is not None
    gradient = upstream[:, None] * jacobian
    # The gradient averages W_v (norm 5) times log ratios; float32 logits make those 2e-6 wrong,
    # which shows where policy and reference agree to four digits. Then float16's subnormals.
    unavoidable = upstream.abs() * 1e-5 + 5 * 3e-8 * (dtype == torch.float16)
    error = (leaf.grad.double() - gradient).norm(dim=1) - unavoidable
    limit = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
    assert (error / gradient.norm(dim=1)).max() < limit


@pytest.mark.skipif(not INTERPRETED, reason="test_interpreter.py")
@pytest.mark.parametrize("distance", [0.02, 1.0])
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("map_name", ["plain", "softcap"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_triton_kernel_interpreted(
    dtype: torch.dtype,
    map_name: str,
    direction: Direction,
    distance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlkit.kernels.kl.fits", lambda hidden, top_k: top_k is None)
    monkeypatch.setattr("rlkit.kernels._kl_triton._BLOCK", 64)  # several blocks, the last ragged
    hidden, ref, weight, bias, upstream = inputs(dtype, distance)
    hidden, ref, upstream = hidden[::10], ref[::10], upstream[::10]
    logit_map = MAPS[map_name]._replace(bias=bias if map_name == "softcap" else None)
    kl, jacobian = truth(hidden, ref, weight, logit_map, direction, None)
    leaf = hidden.clone().requires_grad_()
    out = kl_exact(leaf, ref, weight, direction=direction, **logit_map._asdict())
    torch.testing.assert_close(out.detach().double(), kl, rtol=2e-4, atol=1e-8)
    (out * upstream).sum().backward()
    assert leaf.grad is not None
    expected = upstream[:, None] * jacobian
    unavoidable = upstream.abs() * 1e-5 + 5 * 3e-8 * (dtype == torch.float16)
    limit = {torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
    error = (leaf.grad.double() - expected).norm(dim=1) - unavoidable
    assert (error / expected.norm(dim=1)).max() < limit
    with torch.no_grad():
        again = kl_exact(hidden, ref, weight, direction=direction, **logit_map._asdict())
    assert torch.equal(again, out.detach())
    head, exact = weight.clone().requires_grad_(), weight.double().requires_grad_()
    out = kl_exact(hidden, ref, head, direction=direction, **logit_map._asdict())
    assert torch.equal(again, out.detach())
    (found,) = torch.autograd.grad((out * upstream).sum(), head)
    exact_map = logit_map._replace(bias=None if logit_map.bias is None else bias.double())
    z = reference.logits(hidden.double(), exact, exact_map)
    ref_z = reference.logits(ref.double(), exact.detach(), exact_map)
    kl = reference.kl(z, ref_z, reverse=direction == Direction.reverse, top_k=None)
    (of_head,) = torch.autograd.grad((kl * upstream).sum(), exact)
    assert (found.double() - of_head).norm() < limit * of_head.norm()


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("map_name", ["hot", "softcap"])
@pytest.mark.parametrize("top_k", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_head_that_trains(
    device: str,
    dtype: torch.dtype,
    top_k: int | None,
    map_name: str,
    direction: Direction,
) -> None:
    """Gradients in states, weight and bias, against a reference with a head of its own."""
    hidden, ref, weight, bias, upstream = (x.to(device) for x in inputs(dtype, 0.5))
    ref_weight, ref_bias = weight + 0.3 * weight.roll(1, 0), bias.roll(2)
    leaves = [hidden, weight, bias]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    logit_map = MAPS[map_name]
    z = reference.logits(exact[0], exact[1], logit_map._replace(bias=exact[2]))
    ref_map = logit_map._replace(bias=ref_bias.double())
    ref_z = reference.logits(ref.double(), ref_weight.double(), ref_map)
    kl = reference.kl(z, ref_z, reverse=direction == Direction.reverse, top_k=top_k)
    expected = torch.autograd.grad((kl * upstream).sum(), exact)
    hidden, weight, bias = (x.detach().requires_grad_() for x in leaves)
    out = kl_exact(
        hidden,
        ref,
        weight,
        direction=direction,
        top_k=top_k,
        **logit_map._asdict() | {"bias": bias},
        ref_weight=ref_weight,
        ref_bias=ref_bias,
        workspace_bytes=7 * 157 * 24,
    )
    digits = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 2e-3}[dtype]
    torch.testing.assert_close(out.double(), kl.detach(), rtol=max(digits, 2e-7), atol=1e-8)
    found = torch.autograd.grad((out * upstream).sum(), [hidden, weight, bias])
    limit = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 6e-3}[dtype]
    for actual, truth in zip(found, expected, strict=True):
        assert (actual.double() - truth).norm() < limit * truth.norm()
    again = kl_exact(
        hidden.detach(),
        ref,
        weight.detach(),
        direction=direction,
        top_k=top_k,
        **logit_map._asdict() | {"bias": bias.detach()},
        ref_weight=ref_weight,
        ref_bias=ref_bias,
        workspace_bytes=7 * 157 * 24,
    )
    assert torch.equal(again, out)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradcheck_in_single_rows(direction: Direction, top_k: int | None) -> None:
    """Finite differences, one row at a time (the function is differentiated once per call)."""
    gen = torch.Generator().manual_seed(0)
    hidden, ref = (torch.randn(2, 3, generator=gen, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(9, 3, generator=gen, dtype=torch.float64)
    leaf = hidden.clone().requires_grad_()
    kl_exact(leaf, ref, weight, direction=direction, top_k=top_k, softcap=2.0).sum().backward()
    assert leaf.grad is not None
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(hidden)
            step[i, j] = 1e-6
            up, down = (
                kl_exact(hidden + s, ref, weight, direction=direction, top_k=top_k, softcap=2.0)
                for s in (step, -step)
            )
            slope = (up.sum() - down.sum()) / 2e-6
            assert math.isclose(slope, leaf.grad[i, j], rel_tol=1e-5, abs_tol=1e-8)


def test_hand_computed() -> None:
    """p = (1, 2, 5) / 8 against uniform q, and the bucket of the two words outside the top 1."""
    weight = torch.tensor([[1.0, 2.0, 5.0], [3.0, 1.0, 1.0]]).log().T.contiguous()
    policy, ref = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = (1 / 8, 2 / 8, 5 / 8), (3 / 5, 1 / 5, 1 / 5)
    reverse = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    forward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    bucket = 1 / 8 * math.log(5 / 24) + 7 / 8 * math.log(7 / 8 * 5 / 2)
    for direction, top_k, expected in (
        ("reverse", None, reverse),
        ("forward", None, forward),
        ("reverse", 1, bucket),
    ):
        out = kl_exact(policy, ref, weight, direction=direction, top_k=top_k)
        assert math.isclose(out.item(), expected, rel_tol=1e-5)
    assert kl_exact(policy, ref, weight, direction=KLDirection.reverse).item() == pytest.approx(
        reverse, rel=1e-5
    )


@pytest.mark.parametrize("direction", list(Direction))
def test_far_apart_and_equal_distributions(direction: Direction) -> None:
    """Logits of +-80 stay finite; identical hidden states give exactly 0 and no gradient."""
    weight = torch.eye(6, 8)
    hidden, ref = torch.zeros(3, 8), torch.zeros(3, 8)
    hidden[:, 0], ref[:, 1] = 80.0, torch.tensor([80.0, 0.0, -80.0])
    leaf = hidden.clone().requires_grad_()
    out = kl_exact(leaf, ref, weight, direction=direction)
    kl, jacobian = truth(hidden, ref, weight, LogitMap(), direction, None)
    torch.testing.assert_close(out.double(), kl, rtol=1e-5, atol=1e-8)
    out.sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), jacobian, rtol=1e-4, atol=1e-6)
    same = hidden.clone().requires_grad_()
    zero = kl_exact(same, hidden, weight, direction=direction)
    zero.sum().backward()
    assert same.grad is not None and not zero.any() and not same.grad.any()


def test_no_gradient_for_the_reference_and_no_rows() -> None:
    hidden, ref, weight, _, _ = inputs(torch.float32, 1.0)
    ref.requires_grad_()
    assert not kl_exact(hidden, ref, weight, direction="forward").requires_grad
    leaf = hidden[:0].requires_grad_()
    kl_exact(leaf, ref[:0], weight, direction="forward").sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == (0, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_hidden": torch.zeros(2, 4)}, r"ref_hidden must have hidden's shape \(3, 4\)"),
        ({"ref_hidden": torch.zeros(3, 4).half()}, "ref_hidden must have hidden's dtype"),
        ({"ref_weight": torch.zeros(8, 4)}, r"ref_weight must have weight's shape, .*\(9, 4\)"),
        ({"top_k": 0}, "top_k must be None or >= 1, got 0"),
        ({"workspace_bytes": -1}, "workspace_bytes must be > 0, got -1"),
        ({"direction": "none"}, "'none' is not a valid Direction"),
        ({"temperature": -1.0}, "temperature must be finite and > 0"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "hidden": torch.zeros(3, 4),
        "ref_hidden": torch.zeros(3, 4),
        "weight": torch.zeros(9, 4),
        "direction": "reverse",
    }
    with pytest.raises(ValueError, match=message):
        kl_exact(**(arguments | change))  # type: ignore[arg-type]
