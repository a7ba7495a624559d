"""A base in 8 bits on one copy: the trainer computes on vLLM's codes and scales."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from vllm_models import logps_of, save_tiny, tiny_llm

from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import mean_difference, sample, self_test
from rlkit.generation.vllm.weights import weight_views
from rlkit.models.config import LoRAConfig, QuantConfig, QuantKind
from rlkit.models.fp8 import dequantise, is_fp8, quantise, state_of
from rlkit.models.quantize import fp8_layers, into_fp8, quantisable, tensors_of
from rlkit.models.views import model_on_views, shared_bytes
from rlkit.plan.live import LiveBytes
from rlkit.policy.lora import attach

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
CPU = torch.device("cpu")
CASES = [
    ("llama", torch.float32, ["0.self_attn.o_proj", "1.mlp.up_proj"], 11, 1e-4),
    ("qwen2_tied", torch.bfloat16, [], 14, 0.1),
    ("phi3_fused", torch.float32, [], 8, 1e-4),
]


def fp8_llm(location: str, dtype: torch.dtype, layers: frozenset[str]) -> Any:
    from rlkit.generation.vllm.guard import configure_environment

    configure_environment()
    from rlkit.generation.vllm import fp8

    return tiny_llm(
        location,
        dtype=str(dtype).removeprefix("torch."),
        quantization=fp8.NAME,
        hf_overrides={"quantization_config": fp8.config_of(layers)},
    )


@pytest.mark.parametrize(("family", "dtype", "skip", "count", "tolerance"), CASES)
def test_the_trainer_computes_on_vllms_codes(
    tmp_path: Path, family: str, dtype: torch.dtype, skip: list[str], count: int, tolerance: float
) -> None:
    location = str(save_tiny(tmp_path / "plain", family, dtype))
    config = AutoConfig.from_pretrained(location)
    layers = fp8_layers(QuantConfig(kind=QuantKind.fp8, skip=skip), config)
    assert len(layers) == count
    plain = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, attn_implementation="sdpa")
    weights = {name: plain.get_parameter(f"{name}.weight").detach().clone() for name in layers}
    own = plain.train(False).requires_grad_(False)
    into_fp8(own, layers, CPU)
    with fp8_llm(location, dtype, layers) as llm:
        views = weight_views(llm)
        assert {n.removesuffix(".weight") for n, v in views.items() if is_fp8(v)} == layers
        for name, weight in weights.items():
            view = views[f"{name}.weight"]
            codes, scale = quantise(weight)
            assert torch.equal(view.data, codes) and torch.equal(state_of(view).scale, scale)
        hf = model_on_views(config, views, location, dtype=dtype, device=CPU, attention="sdpa")
        hf.train(False)
        assert shared_bytes(hf, views) == sum(t.nbytes for t in tensors_of(own))
        ids = torch.arange(60).view(2, 30) * 3
        with torch.no_grad():
            assert torch.equal(hf(ids).logits, own(ids).logits)
        rows, logps = sample(llm, None)
        assert mean_difference(logps, logps_of(own, rows)) < tolerance
        _adapter_reaches_both(llm, own, dtype, tolerance)
    # The definition differs from the plain model by what the format rounds.
    for weight in weights.values():
        number = dequantise(*quantise(weight), torch.float32)
        assert 0 < float((number - weight.float()).abs().max()) <= float(weight.abs().max()) / 16
    assert set(weights) <= set(quantisable(own))


@pytest.mark.parametrize("has_bias", [False, True])
def test_one_part_of_a_fused_layer_is_dense_at_a_time(has_bias: bool) -> None:
    """So the plan's activations, which are the trainer's, hold an engine's prompts as well."""
    from rlkit.generation.vllm.fp8 import Fp8RowsLinearMethod

    torch.manual_seed(0)
    sizes = [512, 256, 256]
    codes, scale = quantise(torch.randn(sum(sizes), 512))
    layer = SimpleNamespace(weight=codes, fp8_scale=scale, coded_sizes=sizes)
    x = torch.randn(2, 3, 512)
    bias = torch.randn(sum(sizes)) if has_bias else None
    with LiveBytes() as live:
        out = Fp8RowsLinearMethod().dequantised(layer, x, bias)
    assert 4 * 512 * 512 < live.peak < 1.1 * 4 * 512 * 512
    truth = x.double() @ dequantise(codes, scale, torch.float64).T
    truth += 0.0 if bias is None else bias
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-4)


def _adapter_reaches_both(llm: Any, own: Any, dtype: torch.dtype, tolerance: float) -> None:
    lora = attach(own, LoRAConfig(rank=16, alpha=32.0), dtype=dtype)
    injector = LoRAInjector(llm, tuple(lora.shapes), rank=16, scale=lora.config.scale, key=lora.key)

    def score(adapter: Any, probes: Any) -> list[list[float]]:
        with lora.active(adapter):
            return logps_of(own, probes)

    like: dict[str, Tensor] = {n: torch.zeros(s) for n, s in lora.expected_shapes().items()}
    found = self_test(injector, score, tensors=like, tolerance=2 * tolerance)
    assert [verdict.problem for verdict in found.verdicts] == [""] * len(found.verdicts)
    assert found.effect > 4 * tolerance
