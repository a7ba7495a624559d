"""Layers with one input computed as one, in float64 against each layer's own formula."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

from rlkit.models.joined import Frozen, adjoined, input_gradient, product
from rlkit.models.quantised import dense
from rlkit.policy.lora import LoRA, LoRAConfig, attach, init_adapter
from rlkit.policy.lora_groups import Groups, LayerShape
from rlkit.policy.lora_linear import compute_copies, updated_linear

WIDTHS = [6, 2, 4]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frozen_of(*, apart: bool, biased: bool) -> Frozen:
    whole, bias = noise(sum(WIDTHS), 5, seed=1), noise(sum(WIDTHS), seed=2)
    weights, biases = torch.split(whole, WIDTHS), torch.split(bias, WIDTHS)
    if apart:
        weights, biases = (tuple(part.clone() for part in x) for x in (weights, biases))
    return Frozen(tuple(weights), tuple(biases) if biased else (), WIDTHS)


LAYOUTS = pytest.mark.parametrize("apart", [False, True], ids=["adjoined", "apart"])
BIASES = pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])


@LAYOUTS
@BIASES
def test_a_group_computes_what_its_layers_compute(apart: bool, biased: bool) -> None:
    """Outputs, and the gradients of the input, each A and each B."""
    frozen = frozen_of(apart=apart, biased=biased)
    x = noise(2, 3, 5, seed=3).requires_grad_()
    pairs = [
        (noise(2, 5, seed=4 + i).requires_grad_(), noise(n, 2, seed=7 + i).requires_grad_())
        for i, n in enumerate(WIDTHS)
    ]
    leaves = [x, *(factor for pair in pairs for factor in pair)]
    upstream = noise(2, 3, sum(WIDTHS), seed=11)
    ((a, scaled_b),) = compute_copies([pairs], scale=0.3, dtype=torch.float64)
    together = updated_linear(x, frozen, a, scaled_b)
    biases = frozen.biases or [torch.zeros(())] * len(WIDTHS)
    parts = [
        x @ weight.T + bias + 0.3 * (x @ a.T) @ b.T
        for weight, bias, (a, b) in zip(frozen.weights, biases, pairs, strict=True)
    ]
    expected = torch.cat(parts, dim=-1)
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(together, leaves, upstream)
    for one, other in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@LAYOUTS
@BIASES
def test_zero_b_leaves_every_bit_of_the_product(apart: bool, biased: bool) -> None:
    frozen, x = frozen_of(apart=apart, biased=biased), noise(7, 5, seed=3)
    zeros = torch.zeros(sum(WIDTHS), 6, dtype=torch.float64)
    assert torch.equal(updated_linear(x, frozen, noise(6, 5), zeros), product(x, frozen))


def test_adjoined_is_a_view_of_what_lies_so() -> None:
    whole = noise(12, 5)
    parts = torch.split(whole, WIDTHS)
    joined = adjoined(parts)
    assert joined is not None
    assert joined.data_ptr() == whole.data_ptr()
    assert torch.equal(joined, whole)
    assert adjoined(parts[1:]) is not None
    apart: list[Sequence[Tensor]] = [
        (parts[0], parts[2]),
        (parts[1], parts[0]),
        (parts[0], parts[1].clone()),
        torch.split(whole.T.contiguous().T, WIDTHS),
    ]
    assert [adjoined(case) for case in apart] == [None] * 4


def test_layers_in_4_bits_compute_with_their_values() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    nn_modules = pytest.importorskip("bitsandbytes.nn")
    weights = []
    for i, width in enumerate((64, 128)):
        layer = nn_modules.Linear4bit(64, width, bias=False, quant_type="nf4")
        codes, state = functional.quantize_4bit(noise(width, 64, seed=i).float(), quant_type="nf4")
        layer.weight = nn_modules.Params4bit(codes, quant_state=state, requires_grad=False)
        weights.append(layer.weight)
    frozen = Frozen(tuple(weights), (), [64, 128])
    x, rows = noise(3, 64, seed=5).float(), noise(3, 192, seed=6).float()
    whole = torch.cat([dense(weight) for weight in weights]).double()
    torch.testing.assert_close(
        product(x, frozen).double(), x.double() @ whole.T, rtol=1e-5, atol=1e-4
    )
    found = input_gradient(rows, frozen).double()
    torch.testing.assert_close(found, rows.double() @ whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_copies_are_rounded_once_and_so_are_their_gradients(dtype: torch.dtype) -> None:
    """Groups of several shapes, in any order: bit for bit."""
    layers = [[3, 2], [4], [3, 2], [5]]
    groups = [
        [
            (noise(2, 7, seed=i).float().requires_grad_(), noise(n, 2, seed=n + i).float())
            for n in widths
        ]
        for i, widths in enumerate(layers)
    ]
    leaves = [factor.requires_grad_() for group in groups for pair in group for factor in pair]
    copies = compute_copies(groups, scale=0.3, dtype=dtype)
    upstream = [noise(*c.shape, seed=i).to(dtype) for pair in copies for i, c in enumerate(pair)]
    flat = [copy for pair in copies for copy in pair]
    gradients = iter(torch.autograd.grad(flat, leaves, upstream))
    for group, (a, scaled_b), da, db in zip(
        groups, copies, upstream[::2], upstream[1::2], strict=True
    ):
        on_diagonal = torch.block_diag(*((0.3 * b).to(dtype) for _, b in group))  # type: ignore[no-untyped-call]
        assert torch.equal(scaled_b, on_diagonal)
        assert torch.equal(a, torch.cat([a for a, _ in group]).to(dtype))
        start = 0
        for i, (_, b) in enumerate(group):
            assert torch.equal(next(gradients), da[2 * i : 2 * i + 2].float())
            block = db[start : start + len(b), 2 * i : 2 * i + 2]
            assert torch.equal(next(gradients), 0.3 * block.float())
            start += len(b)


class TestJoin:
    """On a model: each layer still computes by itself, and what cannot be joined is not."""

    Q, K, V = (f"model.layers.0.self_attn.{part}_proj" for part in "qkv")

    def attached(self, family: str, **options: object) -> tuple[nn.Module, LoRA]:
        model = tiny_model(family)
        config = LoRAConfig(rank=4, **options)  # type: ignore[arg-type]
        return model, attach(model, config, dtype=torch.float64)

    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    def test_joined_and_by_itself(self, family: str) -> None:
        model, lora = self.attached(family)
        layers = {name: model.get_submodule(name) for name in (self.Q, self.K, self.V)}
        project = lora.join(layers)
        assert project is not None
        adapter = init_adapter(lora, seed=0, device=torch.device("cpu"))
        adapter = {
            k: noise(*v.shape, seed=i).requires_grad_() for i, (k, v) in enumerate(adapter.items())
        }
        x = noise(1, 4, 32, seed=99).requires_grad_()

        def gradients(out: Tensor) -> list[Tensor]:
            leaves = [x, *(adapter[lora.key(name, f)] for name in layers for f in "AB")]
            upstream = noise(*out.shape, seed=5)
            return list(torch.autograd.grad(out, leaves, upstream, retain_graph=True))

        with lora.active(adapter):
            one, apart = project(x), torch.cat([layer(x) for layer in layers.values()], dim=-1)
        base, base_apart = project(x), torch.cat([layer(x) for layer in layers.values()], dim=-1)
        for a, b in ((one, apart), (base, base_apart)):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        for a, b in zip(gradients(one), gradients(apart), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.autograd.grad(base.sum(), x)[0].abs().sum() > 0

    def test_not_adapted_too_wide_or_joined_already(self) -> None:
        model, lora = self.attached("llama", targets=["q_proj", "k_proj"])
        layers = {name: model.get_submodule(name) for name in (self.Q, self.K, self.V)}
        assert lora.join(layers) is None
        del layers[self.V]
        assert lora.join(layers) is not None
        assert lora.join(layers) is None
        model = tiny_model("llama")
        wide = attach(model, LoRAConfig(rank=128), dtype=torch.float64)
        layers = {name: model.get_submodule(name) for name in (self.Q, self.K, self.V)}
        assert wide.join(layers) is None

    def test_large_layers_stay_apart(self) -> None:
        """Gate and up of an 8B model; its q, k and v are joined."""
        sizes = {"q": 4096, "k": 1024, "v": 1024, "gate": 14336, "up": 14336}
        groups = Groups({name: LayerShape(4096, n) for name, n in sizes.items()}, rank=16)
        assert groups.may_join(["q", "k", "v"])
        assert not groups.may_join(["gate", "up"])

    def test_some_with_a_bias(self) -> None:
        model, lora = self.attached("qwen2")
        layers = {name: model.get_submodule(name) for name in (self.Q, self.K)}
        layers[self.K].register_parameter("bias", None)
        assert lora.join(layers) is None
