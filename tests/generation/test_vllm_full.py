"""All weights into vLLM: what it samples from after a step is what the trainer computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vllm_models import logps_of, save_tiny, tiny_llm

from rlkit.assembly.generators import policy_score
from rlkit.generation.vllm.config import Weights, is_installed
from rlkit.generation.vllm.full import WeightInjector, self_test
from rlkit.generation.vllm.probe import mean_difference, sample
from rlkit.generation.vllm.weights import weight_views
from rlkit.models.families import head_of
from rlkit.models.views import model_on_views
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import Policy
from rlkit.training.optim import OptimConfig, build_optimizer

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Logits of these random models are large: bfloat16 alone moves logps by 0.06."""


def load(location: str, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(location, dtype=dtype, attn_implementation="sdpa")
    model.train(False)
    return model


def policy_of(model: PreTrainedModel) -> Policy:
    full = FullWeights(model, dtype=model.dtype, holds_reference=False)
    return Policy(model=model, tuning=full, head=head_of(model), adapter=full.masters)


@pytest.mark.parametrize(
    ("family", "weights", "dtype"),
    [
        # Vocabularies padded in vLLM, tied and untied heads, fused layers, biases.
        ("llama", Weights.separate, torch.float32),
        ("qwen2_tied", Weights.shared, torch.float32),
        ("qwen2_tied", Weights.separate, torch.bfloat16),
        ("phi3_fused", Weights.shared, torch.bfloat16),
    ],
)
def test_a_step_reaches_vllm_and_no_old_prefix_stays(
    tmp_path: Path, family: str, weights: Weights, dtype: torch.dtype
) -> None:
    location, limit = save_tiny(tmp_path, family, dtype), LIMITS[dtype]
    with tiny_llm(location, dtype=str(dtype).removeprefix("torch."), max_loras=0) as llm:
        own, plain = (load(location, dtype) for _ in range(2))
        if weights is Weights.shared:
            config, views = AutoConfig.from_pretrained(location), weight_views(llm)
            own = model_on_views(
                config,
                views,
                location,
                dtype=dtype,
                device=torch.device("cpu"),
                attention="sdpa",
            )
        policy = policy_of(own)
        tuning = policy.tuning
        assert isinstance(tuning, FullWeights)
        injector, score = WeightInjector(llm, tuning.copies), policy_score(policy)
        masters = {name: m.detach().clone() for name, m in policy.adapter.items()}
        told = self_test(injector, score, policy.adapter, tolerance=limit)
        way = "shared, nothing" if weights is Weights.shared else "copied in place"
        assert way in told and "too little" not in told
        assert all(torch.equal(masters[name], m) for name, m in policy.adapter.items())

        def error() -> float:
            """Of vLLM's logps, by transformers with the rounded masters: no code of ours."""
            with torch.no_grad():
                for name, parameter in plain.named_parameters():
                    parameter.copy_(policy.adapter[name].to(dtype))
            rows, logps = sample(llm, None)
            return mean_difference(logps, logps_of(plain, rows))

        optimizer = build_optimizer(policy.adapter, OptimConfig(learning_rate=0.05))
        for version in (1, 2):
            assert error() <= limit
            step(policy, optimizer)
            tuning.copies(policy.adapter)
            assert error() > 2 * limit  # old weights, or old keys and values of new ones
            copied = injector.load(policy.adapter, version)
            assert copied == (0 if weights is Weights.shared else size(plain))
            assert error() <= limit
            assert injector.differences(policy.adapter) == []


def step(policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    ids = (7 * torch.arange(60).view(2, 30)) % 200
    with policy.tuning.active(policy.adapter):
        policy.model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def size(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def test_an_engine_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    location = save_tiny(tmp_path, "llama")
    with tiny_llm(location, max_loras=0) as llm:
        policy = policy_of(load(location, torch.float32))
        tuning = policy.tuning
        assert isinstance(tuning, FullWeights)
        first = {name: copy.clone() for name, copy in tuning.copies(policy.adapter).items()}

        def with_an_old_first_layer(masters: dict[str, Tensor]) -> dict[str, Tensor]:
            late = {n: t for n, t in tuning.copies(masters).items() if ".layers.1." in n}
            return first | late

        injector = WeightInjector(llm, with_an_old_first_layer)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="does not sample from the trainer's policy"):
            self_test(injector, policy_score(policy), policy.adapter, tolerance=1e-3)
        right = WeightInjector(llm, tuning.copies)
        assert "bit for bit" in right.explain(policy.adapter)
        with torch.no_grad():
            policy.adapter["model.norm.weight"].mul_(2.0)
        assert "(1 differ, model.norm.weight first)" in right.explain(policy.adapter)
        with pytest.raises(ValueError, match="must be its own masters"):
            right.load(first, 1)
