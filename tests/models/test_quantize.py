"""NF4: values against the paper's table, gradients against dequantised weights, folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_models import gradients, layer, load
from tiny_models import make_batch, random_ids
from transformers import AutoModelForCausalLM

from rlkit.models import DType, ModelConfig, QuantConfig, QuantKind
from rlkit.models.config import Checkpointing
from rlkit.models.quantised import dense
from rlkit.models.quantize import (
    kept_layers,
    meta_model,
    misread_widths,
    nf4_bytes,
    quantisable,
    skip_modules,
    tensors_of,
    units_of,
)
from rlkit.policy.lora import LoRAConfig
from rlkit.policy.policy import new_policy

CPU = torch.device("cpu")
NF4 = QuantConfig(kind=QuantKind.nf4)
IDS = torch.tensor([random_ids(9, seed=1)])
# QLoRA, appendix E.
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip


def test_values_are_the_nearest_levels_of_the_paper(folder: Path) -> None:
    """The stored codes are read by hand: bitsandbytes reads them otherwise on each kind of CPU."""
    plain = layer(load(folder, QuantConfig()).model, "model.layers.0.mlp.up_proj").weight
    quantised = load(folder, QuantConfig(kind=QuantKind.nf4, double_quant=False)).model
    weight: Any = layer(quantised, "model.layers.0.mlp.up_proj").weight
    blocks = plain.flatten().view(-1, 64)
    scales = blocks.abs().amax(1)
    assert torch.equal(weight.quant_state.absmax, scales)
    assert torch.allclose(weight.quant_state.code, LEVELS, rtol=1e-6, atol=0)
    codes = weight.data.flatten()
    chosen = torch.stack((codes >> 4, codes & 15), 1).view(-1, 64).long()
    off = (blocks.double() / scales.double()[:, None])[..., None].sub(LEVELS.double()).abs()
    # Halfway between two levels a CPU may round to either.
    error = off.gather(-1, chosen[..., None])[..., 0]
    assert (error <= off.amin(-1) + 2 * torch.finfo(torch.float32).eps).all()


def test_dequantised_values_are_levels_times_scales() -> None:
    from bitsandbytes.nn.modules import Params4bit

    # Rows of whole blocks, as in models that people train. Where a row ends inside a block,
    # bitsandbytes 0.50.2 takes a wrong scale on CPUs with AVX-512.
    plain = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    weight = Params4bit(plain, quant_type="nf4", compress_statistics=False, requires_grad=False)
    on_device: Any = weight
    found = dense(on_device.to("cpu")).view(-1, 64)
    scales = plain.view(-1, 64).abs().amax(1, keepdim=True)
    chosen = (found / scales)[..., None].sub(LEVELS).abs().argmin(-1)
    assert torch.allclose(found, LEVELS[chosen] * scales, rtol=1e-6, atol=0)


def test_widths_that_bitsandbytes_misreads_are_said(folder: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    loaded = load(folder, QuantConfig(kind=QuantKind.nf4))
    widths = {m.in_features for m in quantisable(loaded.model).values()}
    rows = {width: torch.randn(64, width) for width in widths}
    off = {w: dequantize_4bit(*quantize_4bit(x, blocksize=64)) - x for w, x in rows.items()}
    wrong = {w for w, d in off.items() if d.abs().max() > 0.3 * rows[w].abs().max()}
    assert misread_widths(loaded.model) == sorted(wrong)
    assert any("misreads" in note for note in loaded.notes) == bool(wrong)


def test_the_head_and_embeddings_stay(folder: Path) -> None:
    plain, quantised = load(folder, QuantConfig()).model, load(folder, NF4).model
    kinds = {name: type(module).__name__ for name, module in quantised.named_modules()}
    assert {kinds[name] for name in quantisable(plain)} == {"Linear4bit"}
    assert kinds["lm_head"] == "Linear"
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(quantised.get_parameter(name), plain.get_parameter(name))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(DType.fp32, 1e-5), (DType.bf16, 0.1), (DType.fp16, 0.01)]
)
def test_adapter_gradients_are_those_of_the_dequantised_weights(
    folder: Path, dtype: DType, tolerance: float, double_quant: bool
) -> None:
    """Of float32; in 16 bits no further from it than the same weights in a plain 16-bit model."""
    quant = QuantConfig(kind=QuantKind.nf4, double_quant=double_quant)
    base = load(folder, quant, dtype=dtype)
    with torch.no_grad():  # sampling first: on some CPUs it repacks weights, without a gradient
        base.model(input_ids=IDS)
    exact, plain = load(folder, QuantConfig()), load(folder, QuantConfig(), dtype=dtype)
    for model in (exact.model, plain.model):
        for name, module in quantisable(model).items():
            module.weight.data = dense(layer(base.model, name).weight).to(module.weight.dtype)
    truth, expected = gradients(exact, seed=7)
    errors = {}
    for kind, found in (("nf4", base), ("plain", plain)):
        logps, grads = gradients(found, seed=7)
        assert torch.allclose(logps, truth, rtol=tolerance, atol=tolerance)
        assert all(grad.dtype == torch.float32 for grad in grads.values())
        norms = [(g - expected[k]).norm() / expected[k].norm() for k, g in grads.items()]
        errors[kind] = float(torch.stack(norms).square().mean().sqrt())
    assert errors["nf4"] <= tolerance
    assert dtype is DType.fp32 or errors["nf4"] <= 1.3 * errors["plain"]


def test_zero_b_is_bitwise_the_base_model_and_checkpointing_that_without(folder: Path) -> None:
    policy = new_policy(load(folder, NF4), ModelConfig(lora=LoRAConfig(rank=4)), seed=0)
    batch = make_batch([random_ids(5, seed=2), random_ids(8, seed=3)], [[5, 6, 7], [9, 4]])
    out = policy.forward(batch, adapter=policy.adapter, temperature=1.0)
    with torch.no_grad():
        reference = policy.forward(batch, adapter=None, temperature=1.0)
    assert torch.equal(out.logps, reference.logps)
    for leaf in policy.adapter.values():
        leaf.data.normal_(std=0.1, generator=torch.Generator().manual_seed(leaf.numel()))
    leaves, found = list(policy.adapter.values()), []
    for way in (Checkpointing.off, Checkpointing.on):
        one = replace(policy, gradient_checkpointing=way)
        out = one.forward(batch, adapter=one.adapter, temperature=1.0)
        found.append(torch.autograd.grad(out.logps.sum(), leaves))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


def test_fused_layers_are_kept_together(folder: Path) -> None:
    names = quantisable(load(folder, QuantConfig()).model)
    assert kept_layers(names, ["layers.1.mlp.up_proj", "o_proj"]) == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert units_of(names)["model.layers.0.self_attn.qkv_proj"] == tuple(
        f"model.layers.0.self_attn.{x}_proj" for x in "qkv"
    )
    assert skip_modules(["model.layers.1.mlp.gate_proj"]) == [
        "lm_head",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.gate_up_proj",
    ]


def test_skipped_layers_keep_their_values(folder: Path) -> None:
    plain = load(folder, QuantConfig()).model
    base = load(folder, QuantConfig(kind=QuantKind.nf4, skip=["layers.1.mlp.gate_proj"]))
    for name, module in quantisable(plain).items():
        kept = name.startswith("model.layers.1.mlp.") and not name.endswith("down_proj")
        same = torch.equal(layer(base.model, name).weight.float(), module.weight) if kept else False
        assert same == kept
    assert "base: 12 of 14 linear layers in NF4, 2 kept in 16 bits" in base.notes[1]


def test_predicted_bytes_are_the_tensors_bytes(folder: Path) -> None:
    for double_quant in (True, False):
        base = load(folder, QuantConfig(kind=QuantKind.nf4, double_quant=double_quant))
        shapes = quantisable(meta_model(base.model.config))
        for name, module in quantisable(base.model).items():
            held = sum(t.nbytes for t in tensors_of(module))
            assert held == nf4_bytes(shapes[name].weight.numel(), double_quant=double_quant)


def test_a_quantised_folder_loads_as_it_is(folder: Path, tmp_path: Path) -> None:
    quant = QuantConfig(kind=QuantKind.nf4, skip=["layers.0.mlp.down_proj"])
    base = load(folder, quant, dtype=DType.bf16)
    saved = tmp_path / "nf4"
    base.model.save_pretrained(saved)
    base.tokenizer.save_pretrained(saved)
    expected = base.model(input_ids=IDS).logits
    for again in (QuantConfig(), NF4):
        loaded = load(saved, again, dtype=DType.bf16)
        assert torch.equal(loaded.model(input_ids=IDS).logits, expected)
    # The compute dtype is this run's, not the one that the folder was made with.
    half = load(saved, QuantConfig(), dtype=DType.fp16)
    found: Any = layer(half.model, "model.layers.0.mlp.up_proj")
    assert found.compute_dtype is torch.float16
    assert half.model(input_ids=IDS).logits.dtype == torch.float16
    # And transformers itself reads the same numbers.
    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert torch.equal(theirs(input_ids=IDS).logits, expected)


def test_gradients_in_another_dtype_than_the_folder_was_made_in(
    folder: Path, tmp_path: Path
) -> None:
    """Up to bfloat16's rounding: bitsandbytes' backward pass rounds the weights to their dtype."""
    made = load(folder, NF4, dtype=DType.bf16)
    made.model.save_pretrained(tmp_path / "nf4")
    made.tokenizer.save_pretrained(tmp_path / "nf4")
    wide, exact = load(tmp_path / "nf4", NF4, dtype=DType.fp32), load(folder, QuantConfig())
    theirs = dict(wide.model.named_parameters())
    for name, weight in exact.model.named_parameters():
        weight.data = dense(theirs[name]).float()
    (_, expected), (_, grads) = gradients(exact, seed=7), gradients(wide, seed=7)
    for name, grad in grads.items():
        assert (grad - expected[name]).norm() < 0.1 * expected[name].norm()


def test_refusals(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"memory\.quant\.skip must name linear layers.*got w_proj"
    ):
        load(folder, QuantConfig(kind=QuantKind.nf4, skip=["w_proj"]))
    with pytest.raises(ValueError, match=r"memory\.quant\.skip must be empty with .*kind=none"):
        QuantConfig(skip=["o_proj"])
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="NF4, got quantisation gptq"):
        load(folder, NF4)
