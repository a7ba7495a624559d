"""What is kept in 16 bits: errors against direct computation, the budget, and a KL that falls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from rlkit.models import ModelConfig, QuantConfig, QuantKind
from rlkit.models.load import load_model
from rlkit.models.quantize import nf4_bytes, quantisable
from rlkit.models.quantize_error import (
    UnitError,
    keep_worst,
    mean_kl,
    measure_units,
    next_token_logps,
    through_nf4,
)

PROMPTS = [random_ids(9, seed=1), random_ids(6, seed=2)]
CPU = torch.device("cpu")


def test_errors_of_a_unit_are_those_of_the_model_with_it_quantised() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = {e.unit: e for e in measure_units(model, PROMPTS, double_quant=True)}
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert len(found) == 8  # qkv, o, gate_up and down of two layers
    unit = found["model.layers.1.mlp.gate_up_proj"]
    assert unit.layers == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    assert unit.extra_bytes == 2 * (2 * 32 * 48 - nf4_bytes(32 * 48, double_quant=True))
    # The same by hand: whole softmaxes, one prompt at a time, in float64.
    total, tokens = 0.0, 0
    exact = [model(input_ids=torch.tensor([ids])).logits[0].double() for ids in PROMPTS]
    inputs: list[torch.Tensor] = []
    gate = model.get_submodule("model.layers.1.mlp.gate_proj")
    handle = gate.register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    squares = [0.0, 0.0]
    weights = {name: quantisable(model)[name].weight for name in unit.layers}
    for name, weight in weights.items():
        weight.data = through_nf4(weight.data, double_quant=True)
        assert not torch.equal(weight, before[f"{name}.weight"])
    for ids, wanted in zip(PROMPTS, exact, strict=True):
        p = wanted.softmax(-1)
        q = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
        total += float((p * (p / q).log()).sum())
        tokens += len(ids)
        for name, weight in weights.items():
            y = F.linear(inputs[-1], before[f"{name}.weight"])
            squares[0] += float((F.linear(inputs[-1], weight) - y).square().sum())
            squares[1] += float(y.square().sum())
    handle.remove()
    assert unit.kl == pytest.approx(total / tokens, rel=1e-3)
    assert unit.output_error == pytest.approx(squares[0] / squares[1], rel=1e-4)


def test_kept_by_kl_per_byte_within_the_budget() -> None:
    def unit(name: str, extra: int, kl: float) -> UnitError:
        return UnitError(name, (name,), extra, 0.1, kl)

    units = [unit("a", 10, 5.0), unit("b", 100, 10.0), unit("c", 20, 6.0), unit("d", 1, -1.0)]
    assert [u.unit for u in keep_worst(units, budget_bytes=30)] == ["a", "c"]
    assert [u.unit for u in keep_worst(units, budget_bytes=25)] == ["a"]
    assert [u.unit for u in keep_worst(units, budget_bytes=1000)] == ["a", "c", "b"]


def test_keeping_the_worst_brings_the_model_nearer_to_16_bits(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(source=str(folder))
    model = load_model(config, device=CPU, say=lambda _: None).model
    reference = [next_token_logps(model, ids).detach() for ids in PROMPTS]
    errors = measure_units(model, PROMPTS, double_quant=True)
    kept = keep_worst(errors, budget_bytes=sum(e.extra_bytes for e in errors) // 2)
    skip = [name for unit in kept for name in unit.layers]

    def distance(quant: QuantConfig, source: Path) -> float:
        base = load_model(
            ModelConfig(source=str(source)), device=CPU, say=lambda _: None, quant=quant
        )
        if source == folder and quant.skip:
            base.model.save_pretrained(tmp_path / "dynamic")
            base.tokenizer.save_pretrained(tmp_path / "dynamic")
        return mean_kl(reference, [next_token_logps(base.model, ids).detach() for ids in PROMPTS])

    plain = distance(QuantConfig(kind=QuantKind.nf4), folder)
    dynamic = distance(QuantConfig(kind=QuantKind.nf4, skip=skip), folder)
    assert 0 < dynamic < plain
    assert distance(QuantConfig(), tmp_path / "dynamic") == pytest.approx(dynamic, rel=1e-6)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "dynamic", dtype=torch.float32)
    logps = [next_token_logps(theirs, ids).detach() for ids in PROMPTS]
    assert mean_kl(reference, logps) == pytest.approx(dynamic, rel=1e-6)
