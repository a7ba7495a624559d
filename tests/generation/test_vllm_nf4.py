"""QLoRA on one copy: the trainer computes on vLLM's 4-bit codes (bitsandbytes NF4).

vLLM >= 0.28 reads NF4 through `vllm-bnb-plugin`, which `make test` does not install.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from vllm_models import LEAVES, in_worker, logps_of, save_tiny, tiny_llm

from rlkit.generation.vllm_lora import LoRAInjector
from rlkit.generation.vllm_probe import (
    mean_difference,
    mismatch_limit,
    random_adapter,
    sample,
    self_test,
)
from rlkit.generation.vllm_weights import weight_views
from rlkit.lora import attach
from rlkit.models.config import LoRAConfig
from rlkit.models.quantize import dequantised, quantisable, settle
from rlkit.models.views import model_on_views, shared_bytes

pytestmark = pytest.mark.skipif(
    find_spec("vllm_bnb_plugin") is None, reason="vllm-bnb-plugin is not installed"
)
DTYPE = torch.bfloat16


def save_nf4(folder: Path) -> str:
    """A tiny Llama in NF4 with double quantisation."""
    options = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny(folder / "plain", "llama", DTYPE),
        dtype=DTYPE,
        quantization_config=options,
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder / "nf4")
    return str(folder / "nf4")


def test_the_trainer_on_vllms_codes(tmp_path: Path) -> None:
    location = save_nf4(tmp_path)
    ids = torch.arange(60).view(2, 30) * 3
    with tiny_llm(location, dtype="bfloat16") as llm:
        views = weight_views(llm)
        config = AutoConfig.from_pretrained(location)
        cpu = torch.device("cpu")
        hf = model_on_views(config, views, location, dtype=DTYPE, device=cpu, attention="sdpa")
        own = AutoModelForCausalLM.from_pretrained(
            location, dtype=DTYPE, attn_implementation="sdpa"
        )
        hf.train(False)
        own.train(False)
        assert settle(own, DTYPE) == settle(hf, DTYPE) == 2 * len(LEAVES)
        # vLLM's memory alone.
        mine = {p.untyped_storage().data_ptr() for p in hf.parameters()}
        assert in_worker(
            llm,
            lambda worker: (
                mine
                <= {p.untyped_storage().data_ptr() for p in worker.model_runner.model.parameters()}
            ),
        )
        assert shared_bytes(hf, views) < 0.75 * sum(p.nbytes for p in _plain(tmp_path).parameters())
        # The same codes; vLLM keeps their scales in float32, which rounds a few weights otherwise.
        for name, layer in quantisable(own).items():
            shared = hf.get_submodule(name)
            assert isinstance(shared, torch.nn.Linear)
            assert torch.equal(shared.weight.data.flatten(), layer.weight.data.flatten()), name
            torch.testing.assert_close(
                dequantised(shared), dequantised(layer), rtol=2**-6, atol=1e-6
            )
        # Against a float32 model with the same dequantised weights: no further off than `own`.
        plain = _plain(tmp_path).float()
        with torch.no_grad():
            for name in quantisable(own):
                module = hf.get_submodule(name)
                assert isinstance(module, torch.nn.Linear)
                plain.get_submodule(name).get_parameter("weight").copy_(dequantised(module))
            truth = plain(ids).logits
            mine_off, own_off = ((m(ids).logits - truth).abs().mean() for m in (hf, own))
        assert mine_off < 1.2 * own_off < 0.1
        rows, logps = sample(llm, None)
        assert mean_difference(logps, logps_of(own, rows)) < 0.05
        # QLoRA: the adapter in vLLM and in the trainer, and its gradient through the codes.
        lora = attach(hf, LoRAConfig(rank=16, alpha=32.0), dtype=DTYPE)
        injector = LoRAInjector(
            llm, tuple(lora.shapes), rank=16, scale=lora.config.scale, key=lora.key
        )

        def score(adapter: object, probes: object) -> list[list[float]]:
            with lora.active(adapter):  # type: ignore[arg-type]
                return logps_of(hf, probes)  # type: ignore[arg-type]

        like = {name: torch.zeros(shape) for name, shape in lora.expected_shapes().items()}
        found = self_test(injector, score, like=like, tolerance=mismatch_limit(DTYPE))
        assert [verdict.problem for verdict in found.verdicts] == ["", "", ""]
        adapter = random_adapter(like, lora.config.scale, seed=3, strength=0.4)
        leaves = {name: tensor.requires_grad_() for name, tensor in adapter.items()}
        with lora.active(leaves):
            hf(ids, labels=ids).loss.backward()
        assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves.values())


def _plain(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=DTYPE)
    return model
