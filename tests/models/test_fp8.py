"""A base in 8 bits: values against torch's own format, gradients against dequantised weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from quantised_models import CPU, gradients, layer, load
from tiny_models import random_ids
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models import DType, QuantConfig, QuantKind
from rlkit.models.fp8 import Fp8Linear, dequantise, fp8_bytes, fp8_weight, product, quantise
from rlkit.models.joined import Frozen, adjoined, input_gradient
from rlkit.models.joined import product as joined_product
from rlkit.models.quantised import dense
from rlkit.models.quantize import meta_model, quantisable, tensors_of
from rlkit.models.views import model_on_views, shared_bytes

IDS = torch.tensor([random_ids(9, seed=1)])
FP8 = QuantConfig(kind=QuantKind.fp8)


def weight(rows: int = 33, columns: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows_scale = torch.logspace(-6, 3, rows)[:, None]
    return torch.randn(rows, columns, generator=generator) * rows_scale


def test_values_are_torchs_e4m3_at_the_least_power_of_two() -> None:
    w = weight()
    codes, scale = quantise(w)
    assert codes.dtype is torch.uint8 and codes.shape == w.shape
    for row, s in zip(w, scale.tolist(), strict=True):
        largest = float(row.abs().max())
        # By hand: the least power of two, not below 2^-15, that brings the row to 448 at most.
        exponent = max(math.ceil(math.log2(largest / 448.0)), -15)
        assert s == 2.0**exponent
    expected = (w / scale[:, None]).to(torch.float8_e4m3fn).double() * scale.double()[:, None]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(dequantise(codes, scale, dtype).double(), expected)
    normal = w.abs() >= scale[:, None] * 2.0**-6
    assert ((expected - w).abs() <= w.abs() * 2.0**-4)[normal].all()


def test_numbers_of_the_format_stay_and_float16_holds_them() -> None:
    """All 254 finite codes at scale 1 and at the least one: 448 s is the edge of a row."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    assert len(every) == 254 and float(every.max()) == 448.0
    rows = torch.stack([every, every * 2.0**-15, every * 2.0**5])
    codes, scale = quantise(rows)
    assert scale.tolist() == [1.0, 2.0**-15, 32.0]
    assert torch.equal(dequantise(codes, scale, torch.float16).float(), rows)
    assert torch.equal(dequantise(codes, scale, torch.bfloat16).float(), rows)


def test_rows_at_the_edges() -> None:
    rows = torch.tensor([[0.0, 0.0], [448.0, 1.0], [448.1, -1.0], [1e-30, 0.0]])
    codes, scale = quantise(rows)
    assert scale.tolist() == [2.0**-15, 1.0, 2.0, 2.0**-15]
    assert dequantise(codes, scale, torch.float32).tolist() == [
        [0.0, 0.0],
        [448.0, 1.0],
        [448.0, -1.0],
        [0.0, 0.0],
    ]
    for wrong in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="must be finite, got inf or NaN"):
            quantise(torch.tensor([[0.0, 1.0], [wrong, 1.0]]))


def test_fusing_commutes_with_quantising() -> None:
    """An engine quantises q, k and v together, the trainer each by itself."""
    parts = [weight(5, 8, seed) for seed in range(3)]
    codes, scale = quantise(torch.cat(parts))
    apart = [quantise(part) for part in parts]
    assert torch.equal(codes, torch.cat([c for c, _ in apart]))
    assert torch.equal(scale, torch.cat([s for _, s in apart]))


def test_gradient_of_the_input_is_that_of_the_dequantised_product() -> None:
    codes, scale = quantise(weight(7, 12))
    number = dequantise(codes, scale, torch.float64)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64)
    out = product(x, fp8_weight(codes, scale, torch.float64), bias)
    assert torch.equal(out, F.linear(x, number, bias))
    (found,) = torch.autograd.grad(out.square().sum(), x)
    y = x.detach().requires_grad_()
    (truth,) = torch.autograd.grad(F.linear(y, number, bias).square().sum(), y)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


def test_joined_layers_are_one_product_where_their_codes_lie_together() -> None:
    codes, scale = quantise(weight(12, 8))
    sizes = [6, 4, 2]
    pairs = zip(torch.split(codes, sizes), torch.split(scale, sizes), strict=True)
    weights = tuple(fp8_weight(c, s, torch.float32) for c, s in pairs)
    whole = adjoined(weights)
    assert whole is not None and whole.data_ptr() == codes.data_ptr()
    pairs = zip(torch.split(codes, sizes), torch.split(scale, sizes), strict=True)
    apart = tuple(fp8_weight(c.clone(), s, torch.float32) for c, s in pairs)
    assert adjoined(apart) is None
    number, x = dequantise(codes, scale, torch.float32), torch.randn(5, 8)
    rows = torch.randn(5, 12)
    for found in (Frozen(weights, (), sizes), Frozen(apart, (), sizes)):
        torch.testing.assert_close(joined_product(x, found), x @ number.T)
        torch.testing.assert_close(input_gradient(rows, found), rows @ number)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(DType.fp32, 1e-5), (DType.bf16, 0.1), (DType.fp16, 0.01)]
)
def test_adapter_gradients_are_those_of_the_dequantised_weights(
    folder: Path, dtype: DType, tolerance: float
) -> None:
    """Of float32; in 16 bits bitwise those of a plain model with the same weights."""
    base = load(folder, FP8, dtype=dtype)
    exact, plain = load(folder, QuantConfig()), load(folder, QuantConfig(), dtype=dtype)
    for model in (exact.model, plain.model):
        for name, module in quantisable(model).items():
            module.weight.data = dense(layer(base.model, name).weight).to(module.weight.dtype)
    (truth, expected), (logps, grads) = gradients(exact, seed=7), gradients(base, seed=7)
    assert torch.allclose(logps, truth, rtol=tolerance, atol=tolerance)
    norms = [(g - expected[k]).norm() / expected[k].norm() for k, g in grads.items()]
    assert torch.stack(norms).square().mean().sqrt() <= tolerance
    of_plain, of_plain_grads = gradients(plain, seed=7)
    assert torch.equal(logps, of_plain)
    assert all(torch.equal(grad, of_plain_grads[name]) for name, grad in grads.items())


def test_the_head_and_embeddings_stay_and_bytes_are_those_planned(folder: Path) -> None:
    plain, base = load(folder, QuantConfig()).model, load(folder, FP8)
    for name, module in quantisable(plain).items():
        own = base.model.get_submodule(name)
        assert type(own) is Fp8Linear
        held = sum(t.nbytes for t in tensors_of(own) if t is not own.bias)
        biases = 0 if own.bias is None else own.bias.nbytes
        assert held - biases == fp8_bytes(*module.weight.shape)
        expected = dequantise(*quantise(module.weight), torch.float32)
        assert torch.equal(dense(own.weight), expected)
    assert type(base.model.get_submodule("lm_head")) is nn.Linear
    total = len(quantisable(meta_model(base.model.config)))
    assert f"base: {total} of {total} linear layers in fp8 (e4m3)" in base.notes[1]


def test_skipped_layers_keep_their_values(folder: Path) -> None:
    skip = ["layers.1.mlp.gate_proj"]
    base = load(folder, QuantConfig(kind=QuantKind.fp8, skip=skip))
    kinds = {name: type(base.model.get_submodule(name)) for name in quantisable(base.model)}
    kept = {name for name, kind in kinds.items() if kind is nn.Linear}
    assert kept == {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}
    assert ", 2 kept in 16 bits" in base.notes[1]


def test_a_model_on_views_computes_the_same(folder: Path) -> None:
    base = load(folder, FP8)
    views = dict(base.model.named_parameters())
    model = model_on_views(
        base.model.config, views, base.location, dtype=base.dtype, device=CPU, attention="sdpa"
    )
    assert shared_bytes(model, views) == sum(t.nbytes for t in tensors_of(base.model))
    assert torch.equal(model(input_ids=IDS).logits, base.model(input_ids=IDS).logits)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory\.quant\.double_quant .* powers of two, got f"):
        QuantConfig(kind=QuantKind.fp8, double_quant=False)
    with pytest.raises(ValueError, match=r"memory\.quant\.skip must name linear .*got w_proj"):
        load(folder, QuantConfig(kind=QuantKind.fp8, skip=["w_proj"]))
    made = load(folder, QuantConfig(kind=QuantKind.nf4), dtype=DType.bf16)
    made.model.save_pretrained(tmp_path / "nf4")
    made.tokenizer.save_pretrained(tmp_path / "nf4")
    with pytest.raises(ValueError, match=r"kind must be none or nf4 for a checkpoint in NF4"):
        load(tmp_path / "nf4", FP8)
