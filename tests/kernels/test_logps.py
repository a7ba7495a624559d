# mypy: disable-error-code="no-untyped-call"
"""`selected_logps` against the definition in float64, differentiated by autograd.

Runs with the Triton kernels too under TRITON_INTERPRET=1 (test_interpreter.py) and on a GPU
(`-m gpu`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rlkit.kernels import reference
from rlkit.kernels.compact import compact, spread
from rlkit.kernels.lm_head import LogitMap
from rlkit.kernels.logps import EntropyMode, Impl, selected_logps
from rlkit.kernels.tilings import HOPPER
from rlkit.kernels.workspace import WORKSPACE_BYTES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MAPS = {
    "plain": LogitMap(),
    "hot": LogitMap(temperature=1.7, logit_scale=0.6),
    "cold": LogitMap(temperature=0.3),
    "softcap": LogitMap(softcap=3.0, temperature=0.8, logit_scale=1.3),
}


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    """Gradients of the loss in the logps, far from uniform."""
    upstream_entropy: Tensor
    bias: Tensor


def make_case(n: int, d: int, v: int, dtype: torch.dtype, device: str, spread: float = 2.0) -> Case:
    """Random rows whose targets have probabilities from almost 0 to almost 1."""
    gen = torch.Generator().manual_seed(n * 7919 + d * 31 + v)
    weight = torch.randn(v, d, generator=gen)
    targets = torch.randint(v, (n,), generator=gen)
    targets[0], targets[-1] = 0, v - 1
    pull = torch.linspace(-0.5, 1.5, n)[:, None] * spread * 6 / d
    hidden = pull * weight[targets] + torch.randn(n, d, generator=gen) * spread / d**0.5
    upstream = torch.randn(n, generator=gen) * torch.logspace(-2, 2, n)
    upstream_entropy = torch.randn(n, generator=gen)
    bias = torch.randn(v, generator=gen)
    return Case(
        hidden.to(device, dtype),
        weight.to(device, dtype),
        targets.to(device),
        upstream.to(device),
        upstream_entropy.to(device),
        bias.to(device),
    )


class Truth(NamedTuple):
    logps: Tensor
    entropy: Tensor
    jacobian: Tensor
    """d logps / d hidden, row by row."""
    entropy_jacobian: Tensor


def truth(case: Case, logit_map: LogitMap) -> Truth:
    """float64, and -softplus(log odds) for logps: log_softmax loses p_y > 1 - 1e-12 even there."""
    hidden = case.hidden.double().requires_grad_()
    bias = None if logit_map.bias is None else logit_map.bias.double()
    exact_map, y = logit_map._replace(bias=bias), case.targets[:, None]
    _, entropy = reference.selected_logps(hidden, case.weight.double(), case.targets, exact_map)
    z = reference.logits(hidden, case.weight.double(), exact_map)
    others = z.scatter(1, y, -torch.inf)
    odds = others.logsumexp(1) - z.gather(1, y).squeeze(1)
    logps = -torch.nn.functional.softplus(odds, threshold=1e4)
    (jacobian,) = torch.autograd.grad(logps.sum(), hidden, retain_graph=True)
    (entropy_jacobian,) = torch.autograd.grad(entropy.sum(), hidden)
    return Truth(logps.detach(), entropy.detach(), jacobian, entropy_jacobian)


def relative(actual: Tensor, expected: Tensor) -> Tensor:
    """Error of each row over its norm, beyond what the dtype's range makes unavoidable."""
    range_error = actual.shape[-1] ** 0.5 * 3e-8 * (actual.dtype == torch.float16)  # subnormals
    error = ((actual.double() - expected).norm(dim=-1) - range_error).clamp_min(0)
    share: Tensor = error / expected.norm(dim=-1).clamp_min(1e-30)
    return share


def gradient_tolerance(dtype: torch.dtype) -> float:
    """A few roundings to the dtype; float32 logits of up to 60 are some 1e-5 off in exp."""
    return {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-4}[dtype]


def supported(place: tuple[str, str], dtype: torch.dtype) -> None:
    if place[0] == "triton" and dtype.itemsize != 2:
        pytest.skip("the fused kernels take 16 bits; other dtypes use `torch`")


@pytest.mark.parametrize("entropy", list(EntropyMode))
@pytest.mark.parametrize("with_bias", [False, True], ids=["nobias", "bias"])
@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_values_and_gradients(
    place: tuple[str, str], dtype_name: str, map_name: str, with_bias: bool, entropy: EntropyMode
) -> None:
    impl, device = place
    dtype = DTYPES[dtype_name]
    supported(place, dtype)
    case = make_case(37, 40, 203, dtype, device)
    logit_map = MAPS[map_name]._replace(bias=case.bias if with_bias else None)
    expected = truth(case, logit_map)
    hidden = case.hidden.clone().requires_grad_()
    out = selected_logps(
        hidden, case.weight, case.targets, **logit_map._asdict(), entropy=entropy, impl=Impl(impl)
    )
    assert out.logps.dtype == torch.float32
    torch.testing.assert_close(out.logps.double(), expected.logps, atol=2e-5, rtol=1e-5)
    loss = (out.logps * case.upstream).sum()
    gradient = case.upstream[:, None].double() * expected.jacobian
    if entropy == EntropyMode.none:
        assert out.entropy is None
    else:
        assert out.entropy is not None
        torch.testing.assert_close(out.entropy.double(), expected.entropy, atol=3e-5, rtol=1e-5)
        assert out.entropy.requires_grad == (entropy == EntropyMode.differentiable)
    if entropy == EntropyMode.differentiable:
        assert out.entropy is not None
        loss = loss + (out.entropy * case.upstream_entropy).sum()
        gradient = gradient + case.upstream_entropy[:, None] * expected.entropy_jacobian
    loss.backward()
    assert hidden.grad is not None and hidden.grad.dtype == dtype
    if entropy == EntropyMode.differentiable:  # a sum of two terms may cancel in single rows
        total = (hidden.grad.double() - gradient).norm() / gradient.norm()
        assert total < gradient_tolerance(dtype)
    else:
        assert relative(hidden.grad, gradient).max() < gradient_tolerance(dtype)


@pytest.mark.parametrize("shape", [(1, 8, 2), (5, 16, 257), (130, 72, 255), (3, 64, 1030)])
def test_ragged_shapes(
    place: tuple[str, str], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    impl, device = place
    if impl == "triton":  # let no row be repaired by the slow path
        monkeypatch.setattr("rlkit.kernels._logps_triton._OVERFLOW", torch.inf)
    case = make_case(*shape, torch.bfloat16, device)
    expected = truth(case, LogitMap())
    hidden = case.hidden.clone().requires_grad_()
    out = selected_logps(
        hidden, case.weight, case.targets, entropy=EntropyMode.value, impl=Impl(impl)
    )
    (out.logps * case.upstream).sum().backward()
    assert out.entropy is not None and hidden.grad is not None
    torch.testing.assert_close(out.logps.double(), expected.logps, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(out.entropy.double(), expected.entropy, atol=3e-5, rtol=1e-5)
    assert relative(hidden.grad, case.upstream[:, None] * expected.jacobian).max() < 6e-3


def test_entropy_gradient_alone(place: tuple[str, str]) -> None:
    impl, device = place
    case = make_case(33, 24, 120, torch.bfloat16, device)
    expected = truth(case, LogitMap(temperature=0.7))
    hidden = case.hidden.clone().requires_grad_()
    out = selected_logps(
        hidden,
        case.weight,
        case.targets,
        temperature=0.7,
        entropy=EntropyMode.differentiable,
        impl=Impl(impl),
    )
    assert out.entropy is not None
    (out.entropy * case.upstream_entropy).sum().backward()
    gradient = case.upstream_entropy[:, None] * expected.entropy_jacobian
    assert hidden.grad is not None
    assert (hidden.grad.double() - gradient).norm() / gradient.norm() < 4e-3


@pytest.mark.parametrize("map_name", ["hot", "softcap"])
@pytest.mark.parametrize("entropy", [EntropyMode.none, EntropyMode.differentiable])
@pytest.mark.parametrize("dtype_name", ["bf16", "fp16", "fp32"])
def test_trainable_head(
    place: tuple[str, str], dtype_name: str, entropy: EntropyMode, map_name: str
) -> None:
    impl, device = place
    dtype = DTYPES[dtype_name]
    supported(place, dtype)
    case = make_case(37, 40, 203, dtype, device)
    logit_map = MAPS[map_name]
    leaves = [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out = selected_logps(
        leaves[0],
        leaves[1],
        case.targets,
        **logit_map._replace(bias=leaves[2])._asdict(),
        entropy=entropy,
        impl=Impl(impl),
        workspace_bytes=5 * 203 * 12,  # chunks of five rows
    )
    true_logps, true_entropy = reference.selected_logps(
        exact[0], exact[1], case.targets, logit_map._replace(bias=exact[2])
    )
    loss, true_loss = (out.logps * case.upstream).sum(), (true_logps * case.upstream).sum()
    if entropy == EntropyMode.differentiable:
        assert out.entropy is not None
        loss = loss + (out.entropy * case.upstream_entropy).sum()
        true_loss = true_loss + (true_entropy * case.upstream_entropy).sum()
    loss.backward()
    true_loss.backward()
    for leaf, true_leaf in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and true_leaf.grad is not None
        error = (leaf.grad.double() - true_leaf.grad).norm() / true_leaf.grad.norm()
        assert error < gradient_tolerance(dtype) / 2


def test_large_logits_and_the_confident_token(place: tuple[str, str]) -> None:
    """Logits of +-80: p_y from 1 - 1e-60 down to e^-160, gradients relatively accurate."""
    impl, device = place
    weight = torch.eye(16, 64)
    weight[0, 1] = 0.5
    heights = torch.tensor([80.0, 40.0, 10.0, 3.0, 0.0, -3.0, -40.0, -80.0])
    hidden = torch.zeros(16, 64)
    hidden[:8, 0] = heights
    hidden[8:, 0], hidden[8:, 3] = heights, 80.0
    case = Case(
        hidden.to(device, torch.bfloat16),
        weight.to(device, torch.bfloat16),
        torch.zeros(16, dtype=torch.int64, device=device),
        torch.ones(16, device=device),
        torch.ones(16, device=device),
        torch.zeros(16, device=device),
    )
    expected = truth(case, LogitMap())
    leaf = case.hidden.clone().requires_grad_()
    out = selected_logps(
        leaf, case.weight, case.targets, entropy=EntropyMode.value, impl=Impl(impl)
    )
    out.logps.sum().backward()
    assert out.entropy is not None and leaf.grad is not None
    torch.testing.assert_close(out.logps.double(), expected.logps, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.entropy.double(), expected.entropy, atol=2e-5, rtol=1e-5)
    assert expected.logps.max() > -1e-30 and expected.logps.min() < -100
    assert relative(leaf.grad, expected.jacobian).max() < 6e-3


def test_float16_survives_a_loss_scale() -> None:
    """Confident rows' gradients are below float16's range before scaling, and exact after it."""
    case = make_case(64, 32, 300, torch.float16, "cpu", spread=4.0)
    expected = truth(case, LogitMap())
    assert (expected.jacobian.norm(dim=1) < 1e-6).any() and (expected.logps < -20).any()
    scale = 2.0**10
    hidden = case.hidden.clone().requires_grad_()
    out = selected_logps(hidden, case.weight, case.targets, impl=Impl.torch)
    (out.logps * scale).sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    visible = expected.jacobian.abs().amax(1) * scale > 2e-3  # above float16's subnormals
    visible &= expected.jacobian.abs().amax(1) * scale < 6e4
    assert visible.sum() > 32
    error = relative(hidden.grad[visible], expected.jacobian[visible] * scale)
    assert error.max() < 2e-3
    entropic = case.hidden.clone().requires_grad_()
    both = selected_logps(
        entropic, case.weight, case.targets, entropy=EntropyMode.differentiable, impl=Impl.torch
    )
    (both.logps * scale).sum().backward()
    assert entropic.grad is not None
    assert (entropic.grad.double() - hidden.grad.double()).norm() < 2e-3 * hidden.grad.norm()


def many_tiles(place: tuple[str, str]) -> Case:
    """Several tiles both ways: of the GPU's size, or of the interpreter's (conftest.py)."""
    shape = (70, 40, 150) if place == ("triton", "cpu") else (300, 72, 1030)
    return make_case(*shape, torch.bfloat16, place[1])


def test_same_logps_with_and_without_gradients(place: tuple[str, str]) -> None:
    impl = place[0]
    case = many_tiles(place)
    results = []
    for mode, hidden_learns, head_learns in (
        (EntropyMode.none, False, False),
        (EntropyMode.none, True, False),
        (EntropyMode.value, False, False),
        (EntropyMode.value, True, False),
        (EntropyMode.differentiable, True, False),
        (EntropyMode.none, True, True),
    ):
        hidden = case.hidden.clone().requires_grad_(hidden_learns)
        weight = case.weight.clone().requires_grad_(head_learns)
        out = selected_logps(hidden, weight, case.targets, entropy=mode, impl=Impl(impl))
        results.append(out.logps.detach())
    with torch.no_grad():
        results.append(selected_logps(hidden, weight, case.targets, impl=Impl(impl)).logps)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_do_not_see_each_other(place: tuple[str, str]) -> None:
    """Splitting the rows, or poison in other rows, changes nothing, bit for bit."""
    impl = place[0]
    case = many_tiles(place)
    rows = len(case.targets)

    def run(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        leaf = hidden.clone().requires_grad_()
        out = selected_logps(leaf, case.weight, targets, entropy=EntropyMode.value, impl=Impl(impl))
        out.logps.sum().backward()
        assert out.entropy is not None and leaf.grad is not None
        return torch.stack([out.logps.detach(), out.entropy]), leaf.grad

    values, grads = run(case.hidden, case.targets)
    poisoned = case.hidden.clone()
    poisoned[50:] = torch.nan
    others, poisoned_grads = run(poisoned, case.targets)
    assert torch.equal(others[:, :50], values[:, :50])
    assert torch.equal(poisoned_grads[:50], grads[:50])
    assert others[0, 50:].isnan().all()
    if place == ("triton", "cuda"):  # a BLAS sums in another order for another number of rows
        for cut in (1, 64, rows - 1):
            parts = [
                run(case.hidden[s], case.targets[s])[0] for s in (slice(cut), slice(cut, rows))
            ]
            assert torch.equal(torch.cat(parts, 1), values)


def test_memory_beyond_the_inputs_is_not_read(place: tuple[str, str]) -> None:
    """Inputs that are windows into NaN-filled buffers give the same results."""
    impl, device = place
    case = make_case(37, 40, 203, torch.bfloat16, device)
    hidden = torch.full((39, 40), torch.nan, dtype=torch.bfloat16, device=device)
    weight = torch.full((210, 40), torch.nan, dtype=torch.bfloat16, device=device)
    bias = torch.full((210,), torch.nan, device=device)
    hidden[1:38], weight[3:206], bias[3:206] = case.hidden, case.weight, case.bias
    strided = torch.full((37, 2), -1, device=device)
    strided[:, 1] = case.targets
    outs = []
    for h, w, b, y in (
        (case.hidden, case.weight, case.bias, case.targets),
        (hidden[1:38], weight[3:206], bias[3:206], strided[:, 1]),
    ):
        leaf = h.detach().clone().requires_grad_() if h is case.hidden else h.requires_grad_()
        out = selected_logps(leaf, w, y, bias=b, impl=Impl(impl))
        (grad,) = torch.autograd.grad(out.logps.sum(), leaf)
        outs.append((out.logps.detach(), grad))
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])


def test_small_workspace_changes_only_rounding(place: tuple[str, str]) -> None:
    impl = place[0]
    case = many_tiles(place)
    outs = []
    for workspace in (2**29, 1):
        leaf = case.hidden.clone().requires_grad_()
        out = selected_logps(
            leaf, case.weight, case.targets, impl=Impl(impl), workspace_bytes=workspace
        )
        (out.logps * case.upstream).sum().backward()
        outs.append((out.logps.detach(), leaf.grad))
    torch.testing.assert_close(outs[0][0], outs[1][0], atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(outs[0][1], outs[1][1], atol=1e-6, rtol=1e-2)


def test_no_rows(place: tuple[str, str]) -> None:
    impl, device = place
    for head_learns in (False, True):
        hidden = torch.zeros(0, 8, dtype=torch.bfloat16, device=device, requires_grad=True)
        weight = torch.ones(5, 8, dtype=torch.bfloat16, device=device, requires_grad=head_learns)
        targets = torch.zeros(0, dtype=torch.int64, device=device)
        out = selected_logps(hidden, weight, targets, entropy=EntropyMode.value, impl=Impl(impl))
        out.logps.sum().backward()
        assert out.logps.shape == (0,) and hidden.grad is not None and hidden.grad.shape == (0, 8)
        assert not head_learns or (weight.grad is not None and not weight.grad.any())


@pytest.mark.parametrize("entropy", [EntropyMode.none, EntropyMode.differentiable])
def test_gradients_are_rounded_once(place: tuple[str, str], entropy: EntropyMode) -> None:
    """With upstream gradient 1, bfloat16 gradients are off by one rounding (1.7e-3) or little more.

    Dividing by 1 - p_y before the rounding and multiplying after it would give 2.4e-3.
    """
    impl, device = place
    case = make_case(64, 128, 200, torch.bfloat16, device)
    expected = truth(case, LogitMap())
    hidden = case.hidden.clone().requires_grad_()
    out = selected_logps(hidden, case.weight, case.targets, entropy=entropy, impl=Impl(impl))
    out.logps.sum().backward()
    assert hidden.grad is not None
    errors = relative(hidden.grad, expected.jacobian)
    assert errors.square().mean().sqrt() < 2.1e-3


def test_chunks_fill_whole_waves() -> None:
    """The chunk sizes that measured fastest at the benchmark's shapes (docs/kernels.md)."""
    pytest.importorskip("triton")
    from rlkit.kernels._logps_launch import chunk_rows

    for words, width, rows in ((151936, 1536, 2816), (128256, 4096, 2048)):
        weight = torch.empty(words, width, dtype=torch.bfloat16, device="meta")
        found = chunk_rows(
            weight, HOPPER, multiprocessors=132, store=True, workspace_bytes=WORKSPACE_BYTES
        )
        assert found == rows


def test_fused_kernels_refuse_what_they_cannot_take() -> None:
    pytest.importorskip("triton")
    weight, targets = torch.zeros(9, 8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="impl=triton needs hidden in bfloat16 or float16"):
        selected_logps(torch.zeros(3, 8), weight, targets, impl=Impl.triton)


def test_second_backward_is_refused() -> None:
    case = make_case(4, 8, 9, torch.float32, "cpu")
    hidden = case.hidden.requires_grad_()
    loss = selected_logps(hidden, case.weight, case.targets, impl=Impl.torch).logps.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


def test_hand_computed() -> None:
    """Logits (0, ln 2, ln 5) / T with T = 1: p = (1, 2, 5) / 8."""
    weight = torch.tensor([[0.0], [2.0], [5.0]]).log().nan_to_num(neginf=0.0)
    out = selected_logps(
        torch.ones(3, 1), weight, torch.arange(3), entropy=EntropyMode.value, impl=Impl.torch
    )
    torch.testing.assert_close(out.logps, torch.tensor([1 / 8, 1 / 4, 5 / 8]).log())
    assert out.entropy is not None
    torch.testing.assert_close(out.entropy, torch.full((3,), 0.9002561))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (7, 3), (7,))
    )
    targets = torch.tensor([0, 6, 3, 3, 1])

    def run(impl: Impl, h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        out = selected_logps(
            h,
            w,
            targets,
            temperature=0.7,
            logit_scale=1.3,
            softcap=2.0,
            bias=b,
            entropy=EntropyMode.differentiable,
            impl=impl,
            workspace_bytes=300,
        )
        assert out.entropy is not None
        return out.logps, out.entropy

    for impl in (Impl.reference, Impl.torch):
        assert torch.autograd.gradcheck(partial(run, impl), (hidden, weight, bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 4, 5)}, r"hidden must have shape \(N, D\), got \(3, 4, 5\)"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.int32)}, "hidden must be float16"),
        ({"weight": torch.zeros(9, 5)}, r"weight must have shape .* D = 4, got \(9, 5\)"),
        ({"weight": torch.zeros(1, 4)}, "weight must have at least 2 rows"),
        ({"weight": torch.zeros(9, 4).half()}, "weight must have hidden's dtype"),
        ({"weight": torch.zeros(9, 4, device="meta")}, "weight must be on hidden's device"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets must have shape \(3,\)"),
        ({"targets": torch.zeros(3)}, "targets must be int64 or int32"),
        ({"targets": torch.tensor([0, 9, 1])}, r"targets must be in \[0, 9\), got 9"),
        ({"targets": torch.tensor([0, -100, 1])}, r"targets must be in \[0, 9\), got -100"),
        ({"bias": torch.zeros(8)}, r"bias must have shape \(9,\), got \(8,\)"),
        ({"bias": torch.zeros(9, dtype=torch.int64)}, "bias must be floating point"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
        ({"logit_scale": 0.0}, "logit_scale must be finite and not 0"),
        ({"softcap": -1.0}, "softcap must be None or finite and > 0, got -1.0"),
        ({"workspace_bytes": 0}, "workspace_bytes must be > 0, got 0"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(9, 4),
        "targets": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        selected_logps(**(arguments | change))  # type: ignore[arg-type]


def test_targets_out_of_range(place: tuple[str, str]) -> None:
    """On a GPU this is found after the kernels ran: they must not read outside the weights."""
    impl, device = place
    case = make_case(37, 40, 203, torch.bfloat16, device)
    for wrong in (-100, 203, 10**6):
        targets = case.targets.clone()
        targets[5] = wrong
        hidden = case.hidden.clone().requires_grad_()
        with pytest.raises(ValueError, match=rf"targets must be in \[0, 203\), got {wrong}"):
            selected_logps(hidden, case.weight, targets, impl=Impl(impl))


def test_compact_and_spread() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    x = torch.arange(12.0).reshape(2, 3, 2).requires_grad_()
    rows = compact(x, mask)
    assert torch.equal(rows, x[mask])
    rows.mul(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., 0], torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 4.0]]))
    values = rows.detach()[:, 1].requires_grad_()
    back = spread(values, mask)
    assert torch.equal(back, torch.where(mask, x[..., 1], 0.0))
    (back * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, 2.0, 4.0, 5.0]
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert compact(x, none).shape == (0, 2) and not spread(rows[:0, 0], none).any()
