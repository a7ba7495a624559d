"""The trainer's model on vLLM's weights: same memory, same logits, one update for both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vllm_models import (
    CONFIGS,
    LEAVES,
    SCALE,
    in_worker,
    key,
    linear_layers,
    logps_of,
    merged,
    random_lora,
    save_tiny,
    tiny_llm,
)

from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import mean_difference, sample
from rlkit.generation.vllm.weights import forget_prefixes, push_weights, weight_views
from rlkit.models.config import DType, LoRAConfig, ModelConfig
from rlkit.models.load import load_model, load_resolved
from rlkit.models.resolved import resolve_model
from rlkit.models.views import model_on_views, shared_bytes

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
CPU = torch.device("cpu")


class Shared(NamedTuple):
    """An engine, the model on its weights, and one loaded from the files."""

    llm: Any
    hf: PreTrainedModel
    own: PreTrainedModel
    views: dict[str, Tensor]

    def error(self, model: PreTrainedModel) -> float:
        """Mean |logp| between vLLM without an adapter and `model` on sampled tokens."""
        rows, logps = sample(self.llm, None)
        return mean_difference(logps, logps_of(model, rows))


def shared(llm: Any, location: str, dtype: torch.dtype = torch.float32) -> Shared:
    views = weight_views(llm)
    config = AutoConfig.from_pretrained(location)
    hf = model_on_views(config, views, location, dtype=dtype, device=CPU, attention="sdpa")
    own = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, attn_implementation="sdpa")
    hf.train(False)
    own.train(False)
    return Shared(llm, hf, own, views)


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    location = save_tiny(tmp_path, request.param)
    with tiny_llm(location) as llm:
        yield shared(llm, location)


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[Shared]:
    location = save_tiny(tmp_path, "llama")
    with tiny_llm(location) as llm:
        yield shared(llm, location)


def storages(model: Any) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(60).view(2, 30) * 3
    with torch.no_grad():
        out: Tensor = model(ids).logits
    return out


def test_families(family: Shared) -> None:
    """Fused parts, biases, q and k norms, padded vocabularies, tied heads; then an adapter."""
    # Not one weight of its own: every storage is one of vLLM's.
    assert storages(family.hf) <= in_worker(family.llm, lambda w: storages(w.model_runner.model))
    assert torch.equal(logits(family.hf), logits(family.own))
    for (name, buffer), (other, its) in zip(
        family.hf.named_buffers(), family.own.named_buffers(), strict=True
    ):
        assert name == other and torch.equal(buffer, its), name
    size = sum(p.numel() * p.element_size() for p in family.own.parameters())
    assert shared_bytes(family.hf, family.views) == size
    assert not any(p.requires_grad for p in family.hf.parameters())
    assert family.error(family.own) <= 1e-4
    layers = linear_layers(family.own, (*LEAVES, "qkv_proj", "gate_up_proj"))
    injector = LoRAInjector(family.llm, layers, rank=8, scale=SCALE, key=key)
    tensors = random_lora(family.own, layers, rank=8, seed=1, size=0.1)
    assert injector.load(tensors, 0).bound_modules == len(layers)
    rows, logps = sample(family.llm, injector.request)
    assert mean_difference(logps, logps_of(family.own, rows)) > 0.05
    with merged(family.own, tensors):
        assert mean_difference(logps, logps_of(family.own, rows)) <= 1e-4


def test_the_starter(engine: Any, starter: str, starter_hf: PreTrainedModel) -> None:
    views = weight_views(engine.llm)
    config = ModelConfig(source=starter, dtype=DType.fp32)
    base = load_resolved(resolve_model(config, device=CPU, say=print), say=print, weights=views)
    assert shared_bytes(base.model, views) == 538_060_032
    assert torch.equal(logits(base.model), logits(starter_hf))
    # What load_model reads beside the weights is there as well.
    plain = load_model(config, device=CPU, say=print)
    assert base.stop_ids == plain.stop_ids
    assert base.model.generation_config.to_dict() == plain.model.generation_config.to_dict()


@pytest.mark.parametrize(
    ("model", "limit"), [("qwen3", 0.05), pytest.param("starter", 0.2, marks=pytest.mark.nightly)]
)
def test_bfloat16_with_an_adapter(tmp_path: Path, starter: str, model: str, limit: float) -> None:
    location = starter if model == "starter" else save_tiny(tmp_path, model, torch.bfloat16)
    with tiny_llm(location, dtype="bfloat16") as llm:
        both = shared(llm, location, torch.bfloat16)
        assert torch.equal(logits(both.hf), logits(both.own))
        layers = linear_layers(both.own)
        injector = LoRAInjector(llm, layers, rank=16, scale=0.7, key=key)
        for seed in range(3):
            tensors = random_lora(both.own, layers, rank=16, seed=seed, size=0.1)
            injector.load(tensors, seed)
            assert injector.differences(tensors) == []
            rows, logps = sample(llm, injector.request)
            assert mean_difference(logps, logps_of(both.own, rows)) > 0.2
            with merged(both.own, tensors, scale=0.7):
                assert mean_difference(logps, logps_of(both.own, rows)) < limit


def test_a_training_step_on_the_views_is_a_step_of_vllm(llama: Shared) -> None:
    """Gradients equal those of a model of its own, and one optimiser step updates both."""
    ids = torch.arange(60).view(2, 30) * 3
    for model in (llama.hf, llama.own):
        model.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    for (name, mine), its in zip(llama.hf.named_parameters(), llama.own.parameters(), strict=True):
        assert mine.grad is not None and its.grad is not None
        assert torch.equal(mine.grad, its.grad), name
        assert torch.equal(mine, its), name
    assert shared_bytes(llama.hf, llama.views) > 0  # still vLLM's memory
    forget_prefixes(llama.llm)
    assert llama.error(llama.own) <= 1e-4


def test_old_prefixes_are_stale_until_they_are_forgotten(llama: Shared) -> None:
    assert llama.error(llama.own) <= 1e-4
    with torch.no_grad():
        for model in (llama.hf, llama.own):
            model.get_parameter("model.layers.0.self_attn.v_proj.weight").mul_(-1.0)
    assert llama.error(llama.own) > 0.01
    forget_prefixes(llama.llm)
    assert llama.error(llama.own) <= 1e-4


def test_pushing_all_weights_keeps_addresses_views_and_adapter(llama: Shared) -> None:
    layers = linear_layers(llama.own)
    injector = LoRAInjector(llama.llm, layers, rank=8, scale=SCALE, key=key)
    tensors = random_lora(llama.own, layers, rank=8, seed=2, size=0.1)
    injector.load(tensors, 0)
    before = in_worker(
        llama.llm, lambda w: [p.data_ptr() for p in w.model_runner.model.parameters()]
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in llama.own.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pushed = push_weights(llama.llm, dict(llama.own.named_parameters()))
    assert pushed == sum(p.nbytes for p in llama.own.parameters())
    after = in_worker(
        llama.llm, lambda w: [p.data_ptr() for p in w.model_runner.model.parameters()]
    )
    assert before == after
    assert torch.equal(logits(llama.hf), logits(llama.own))
    rows, logps = sample(llama.llm, injector.request)
    with merged(llama.own, tensors):
        assert mean_difference(logps, logps_of(llama.own, rows)) <= 1e-4
    # What is shared already needs no copy.
    assert push_weights(llama.llm, dict(llama.hf.named_parameters())) == 0


def test_what_does_not_fit_is_refused(llama: Shared, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    config = AutoConfig.from_pretrained(save_tiny(tmp_path / "again", "llama"))

    def build(views: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        model_on_views(config, views, str(tmp_path), dtype=dtype, device=CPU, attention="sdpa")

    without = {n: v for n, v in llama.views.items() if n != name}
    with pytest.raises(ValueError, match=rf"needs {name} of shape .*got none"):
        build(without)
    packed = {**llama.views, name: torch.zeros(0)}  # what oneDNN leaves of a packed weight
    with pytest.raises(ValueError, match=r"got \(0,\) "):
        build(packed)
    with pytest.raises(ValueError, match=r"in torch.bfloat16 on cpu, got .*torch.float32"):
        build(llama.views, torch.bfloat16)
    with pytest.raises(ValueError, match="got a copy"):
        shared_bytes(llama.own, llama.views)
    with pytest.raises(ValueError, match=r"must hold nowhere of shape \(1,\), got None"):
        push_weights(llama.llm, {"nowhere": torch.zeros(1)})


def test_the_trainers_adapter_runs_on_the_views(llama: Shared) -> None:
    """Gradients of the adapter through shared weights equal those through weights of its own."""
    from rlkit.policy.lora import attach

    ids = torch.arange(60).view(2, 30) * 3
    grads = []
    for model in (llama.hf, llama.own.requires_grad_(False)):
        lora = attach(model, LoRAConfig(rank=4, alpha=8.0), dtype=torch.float32)
        tensors = random_lora(model, list(lora.shapes), rank=4, seed=3)
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        with lora.active(leaves):
            model(ids, labels=ids).loss.backward()
        grads.append([leaf.grad for leaf in leaves.values()])
    for mine, its in zip(*grads, strict=True):
        assert mine is not None and its is not None and torch.equal(mine, its)
