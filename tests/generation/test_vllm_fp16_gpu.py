"""float16, for cards without bfloat16, on a CUDA device: gradients on vLLM's weights, and a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cli_process import from_the_start
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from vllm_models import LEAVES

from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.probe import mismatch_limit, random_factors
from rlkit.models.config import DType, LoRAConfig, ModelConfig
from rlkit.models.load import load_resolved
from rlkit.models.resolved import resolve_model
from rlkit.plan.rehearse import full_batch
from rlkit.policy.lora import attach
from rlkit.policy.policy import Policy, new_policy
from rlkit.training.loss_scale import FLOAT16
from rlkit.training.optim import OptimConfig
from rlkit.training.update import UpdateSettings, accumulate
from rlkit.types import Algorithm, LossOutput, TrainBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
DTYPE = torch.float16
LORA = LoRAConfig()
NUM_TOKENS = 2**17
"""Of a batch of which the rows below are a part: their gradients are as small as in a real step."""
Gradients = dict[str, Tensor]


class Step(NamedTuple):
    """A micro-batch and the adapter that its gradient is taken at."""

    batch: TrainBatch
    adapter: dict[str, Tensor]


def step_on(policy: Policy, device: torch.device) -> Step:
    rollout = full_batch((4, 24, 40), num_words=policy.head.weight.shape[0], device=device)
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(4, 40, generator=generator).to(device)
    batch = TrainBatch(
        rollout=rollout,
        loss_mask=rollout.completion_mask,
        advantages=advantages,
        returns=None,
        num_tokens=NUM_TOKENS,
        num_sequences=4,
    )
    return Step(batch, dict(random_factors(policy.adapter, LORA.scale, seed=1, strength=1.0)))


def gradients(policy: Policy, step: Step, *, loss_scale: float) -> Gradients:
    """Of -sum(advantage x logp) / NUM_TOKENS, by rlkit."""
    for name, leaf in policy.adapter.items():
        leaf.data.copy_(step.adapter[name])
        leaf.grad = None
    algorithm = Algorithm(
        prepare=lambda rollout: step.batch,
        loss=lambda out, micro: LossOutput(
            -(micro.advantages * out.logps).sum() / micro.num_tokens, {}
        ),
    )
    settings = UpdateSettings(
        optim=OptimConfig(), total_updates=1, temperature=1.0, tokens_per_microbatch=128
    )
    accumulate(policy, step.batch, algorithm, settings, loss_scale=loss_scale)
    found = {name: leaf.grad for name, leaf in policy.adapter.items()}
    return {name: grad / loss_scale for name, grad in found.items() if grad is not None}


def float32_gradients(location: str, step: Step) -> Gradients:
    """The same by transformers' model and logits in float32, without rlkit's kernels."""
    rollout = step.batch.rollout
    model: Any = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    model.to(rollout.prompt_ids.device).requires_grad_(False).train(False)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in step.adapter.items()}
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], dim=1)
    with attach(model, LORA, dtype=torch.float32).active(leaves):
        logits = model(ids).logits[:, rollout.prompt_ids.shape[1] - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, rollout.completion_ids[..., None])[..., 0]
    (-(step.batch.advantages * logps).sum() / NUM_TOKENS).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def distance(found: Gradients, truth: Gradients) -> float:
    """Relative to the norm of the truth, over all tensors."""
    assert found.keys() == truth.keys()
    off = sum(float((found[k] - truth[k]).square().sum()) for k in truth)
    return float((off / sum(float(g.square().sum()) for g in truth.values())) ** 0.5)


@pytest.fixture(scope="module")
def policy(starter: str) -> Iterator[Policy]:
    """In float16 on vLLM's weights."""
    from rlkit.generation.vllm.engine import start_engine
    from rlkit.generation.vllm.spec import EngineSpec
    from rlkit.generation.vllm.weights import weight_views

    device = torch.device("cuda", torch.cuda.current_device())
    spec = EngineSpec(
        location=starter,
        revision=None,
        hf_config=AutoConfig.from_pretrained(starter),
        dtype=DTYPE,
        device=device,
        max_prompt_length=64,
        max_completion_length=64,
        rows=4,
        lora_rank=16,
        lora_modules=LEAVES,
    )
    engine = start_engine(VLLMGeneratorConfig(kv_cache_bytes=2**26), spec, say=print)
    config = ModelConfig(source=starter, dtype=DType.fp16)
    views = weight_views(engine.llm)
    base = load_resolved(resolve_model(config, device=device, say=print), say=print, weights=views)
    yield new_policy(base, config, seed=0)
    engine.close()


def test_gradients_are_those_of_float32(policy: Policy, starter: str, record_property: Any) -> None:
    step = step_on(policy, policy.head.weight.device)
    truth = float32_gradients(starter, step)
    scaled, plain = (
        distance(gradients(policy, step, loss_scale=scale), truth) for scale in (FLOAT16.value, 1.0)
    )
    record_property("scaled", scaled)
    record_property("plain", plain)
    print(f"relative error of the gradient: {scaled:.4f} scaled, {plain:.4f} not")
    assert scaled < 0.04  # on a CPU .017, and .75 without a scale, which loses what is too small
    assert plain > 10 * scaled


def test_a_run_learns(starter: str, tmp_path: Path, record_property: Any) -> None:
    """With a cache of keys and values that is there only while completions are sampled."""
    overrides = [
        *(f"model.source={starter}", "model.dtype=fp16", "task=echo", "steps=20"),
        *("generator=vllm", "generator.release_kv_cache=true"),
        *("evaluation.num_prompts=16", "run_dir=run"),
    ]
    done = from_the_start(*overrides, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for line in ("dtype: fp16 (model.dtype)", "weights shared", "worst step tried"):
        assert line in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    for key in ("reward", "loss_scale", "sampling/sampling_logp_difference/mean"):
        record_property(key, [record[key] for record in records])
    rewards = [record["reward"] for record in records]
    # Against the first step, which no update has seen: the second has learnt something already.
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.15
    assert not any(record["skipped_updates"] for record in records)
    assert all(2.0**4 <= record["loss_scale"] <= FLOAT16.limit for record in records)
    off = [record["sampling/sampling_logp_difference/mean"] for record in records]
    assert max(off) < mismatch_limit(DTYPE)
