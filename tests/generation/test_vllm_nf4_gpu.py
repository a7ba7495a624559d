"""QLoRA on one copy, on a CUDA device with CUDA graphs: SmolLM2 in NF4."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cli_process import from_the_start
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vllm_models import LEAVES, logps_of

from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import (
    mean_difference,
    mismatch_limit,
    random_factors,
    sample,
    self_test,
)
from rlkit.generation.vllm.weights import kv_sleep, kv_wake, weight_views
from rlkit.models.config import LoRAConfig, ModelConfig, QuantConfig, QuantKind
from rlkit.models.nf4_folder import in_nf4
from rlkit.models.quantize import settle, tensors_of
from rlkit.models.resolved import resolve_model
from rlkit.models.views import model_on_views, shared_bytes
from rlkit.policy.lora import attach

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
DTYPE = torch.bfloat16


class Cuda(NamedTuple):
    """An engine on NF4, the model on its weights, and one that transformers loaded."""

    llm: Any
    hf: PreTrainedModel
    own: PreTrainedModel
    views: dict[str, Tensor]
    added_bytes: int
    """What the model on the engine's weights takes beside them."""


@pytest.fixture(scope="module")
def cuda(starter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cuda]:
    from rlkit.generation.vllm.engine import start_engine
    from rlkit.generation.vllm.spec import EngineSpec

    device = torch.device("cuda", torch.cuda.current_device())
    cache = str(tmp_path_factory.mktemp("cache"))
    plain = ModelConfig(source=starter, cache_dir=cache)
    model = resolve_model(plain, device=device, say=print)
    folder = in_nf4(model, QuantConfig(kind=QuantKind.nf4), say=print).location
    spec = EngineSpec(
        location=folder,
        revision=None,
        hf_config=AutoConfig.from_pretrained(folder),
        dtype=DTYPE,
        device=device,
        max_prompt_length=128,
        max_completion_length=128,
        rows=8,
        lora_rank=16,
        lora_modules=LEAVES,
    )
    options = VLLMGeneratorConfig(release_kv_cache=True, kv_cache_bytes=2**28)
    engine = start_engine(options, spec, say=print)
    before = torch.cuda.memory_allocated()
    views = weight_views(engine.llm)
    hf = model_on_views(spec.hf_config, views, folder, dtype=DTYPE, device=device, attention="sdpa")
    hf.train(False)
    added = torch.cuda.memory_allocated() - before
    own = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPE, attn_implementation="sdpa", device_map={"": device}
    )
    settle(own, DTYPE)
    own.train(False).requires_grad_(False)
    yield Cuda(engine.llm, hf, own, views, added)
    engine.close()


def logits(model: PreTrainedModel, num_rows: int) -> Tensor:
    ids = torch.arange(num_rows * 60, device=model.device).view(num_rows, 60) * 397 % 49152
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def test_one_copy_and_the_same_logits(cuda: Cuda, record_property: Any) -> None:
    own_bytes = sum(t.nbytes for t in tensors_of(cuda.own))
    record_property("base_bytes", own_bytes)
    assert shared_bytes(cuda.hf, cuda.views) == own_bytes < 0.45 * 269_030_016
    assert cuda.added_bytes < 2**20
    states = [view.quant_state for view in cuda.views.values() if hasattr(view, "quant_state")]
    assert len(states) == 210 and all(state.nested for state in states)
    for num_rows in (1, 40):  # bitsandbytes' own kernel, and dequantisation with a product
        assert torch.equal(logits(cuda.hf, num_rows), logits(cuda.own, num_rows))


def test_self_test_graphs_and_gradients(cuda: Cuda, record_property: Any) -> None:
    lora = attach(cuda.hf, LoRAConfig(rank=16, alpha=32.0), dtype=DTYPE)
    own_lora = attach(cuda.own, LoRAConfig(rank=16, alpha=32.0), dtype=DTYPE)
    injector = LoRAInjector(
        cuda.llm, tuple(lora.shapes), rank=16, scale=lora.config.scale, key=lora.key
    )

    def score(adapter: Any, probes: Any) -> list[list[float]]:
        with own_lora.active(adapter):
            return logps_of(cuda.own, probes)

    limit = mismatch_limit(DTYPE)
    shapes = lora.expected_shapes().items()
    like = {name: torch.zeros(shape, device=cuda.hf.device) for name, shape in shapes}
    found = self_test(injector, score, tensors=like, tolerance=limit)
    record_property("self_test", str(found))
    assert found.verdicts[0].problem == ""
    rows, logps = sample(cuda.llm, None)
    record_property("base_error", error := mean_difference(logps, score(None, rows)))
    assert error < limit
    adapter = dict(random_factors(like, lora.config.scale, seed=3, strength=0.1))
    ids = torch.arange(60, device=cuda.hf.device).view(1, 60) * 397 % 49152
    grads = []
    for model, its in ((cuda.hf, lora), (cuda.own, own_lora)):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in adapter.items()}
        with its.active(leaves):
            model(ids, labels=ids).loss.backward()
        grads.append(leaves)
    for name, leaf in grads[0].items():
        other = grads[1][name].grad
        assert leaf.grad is not None and other is not None
        assert leaf.grad.abs().sum() > 0
        torch.testing.assert_close(
            leaf.grad, other, rtol=0.02, atol=0.02 * float(other.abs().max())
        )


def test_a_released_cache_leaves_the_blocks(cuda: Cuda) -> None:
    before = logits(cuda.hf, 1)
    assert kv_sleep(cuda.llm) >= 2**28
    assert torch.equal(logits(cuda.hf, 1), before)
    kv_wake(cuda.llm)


def test_a_run_learns(starter: str, tmp_path: Path, record_property: Any) -> None:
    """`memory=qlora` with the generator that `auto` takes here, from the command line."""
    overrides = [
        *(f"model.source={starter}", f"model.cache_dir={tmp_path / 'cache'}", "memory=qlora"),
        *("task=echo", "steps=25", "evaluation.num_prompts=16", "run_dir=run"),
    ]
    done = from_the_start(*overrides, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "generator: vllm (auto" in done.stdout and "weights shared" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    rewards = [record["reward"] for record in records]
    off = [record["sampling/sampling_logp_difference/mean"] for record in records]
    record_property("rewards", rewards)
    record_property("mismatch", off)
    # Against the first step, which no update has seen: the second has learnt something already.
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.15
    assert max(off) < mismatch_limit(DTYPE)
