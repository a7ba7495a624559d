"""vLLM takes one set of LongRoPE's factors for all rows: the self-test must see both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import NO_SPECIAL_TOKENS, tiny_config
from transformers import AutoModelForCausalLM, PreTrainedModel
from vllm_models import tiny_llm

from rlkit.assembly.generators import policy_score
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.full import WeightInjector, self_test
from rlkit.generation.vllm.probe import mean_difference, probe_prompts, sample
from rlkit.models.families import head_of
from rlkit.models.rope import fix_factors
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import Policy

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
SWITCH, CONTEXT = 50, 256


def save_longrope(folder: Path) -> str:
    torch.manual_seed(0)
    config = tiny_config(
        "phi3",
        vocab_size=203,
        hidden_size=128,
        intermediate_size=96,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=SWITCH,
        initializer_range=0.2,
        **NO_SPECIAL_TOKENS,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 16,
            "long_factor": [4.0] * 16,
            "original_max_position_embeddings": SWITCH,
        },
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return str(folder)


def full_policy(location: str, *, length: int | None) -> Policy:
    model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    model.train(False)
    if length is not None:
        fix_factors(model, length)
    full = FullWeights(model, dtype=torch.float32, holds_reference=False)
    return Policy(model=model, tuning=full, head=head_of(model), adapter=full.masters)


def test_rows_on_both_sides_of_the_switch_are_probed(tmp_path: Path) -> None:
    location = save_longrope(tmp_path)
    with tiny_llm(location, max_loras=0) as llm:
        lengths = [len(prompt) for prompt in probe_prompts(llm)]
        assert lengths[2:] == [SWITCH - 8, SWITCH + 1]
        assert min(lengths[:2]) > SWITCH  # alone these would pass

        policy = full_policy(location, length=None)
        injector = WeightInjector(llm, policy.tuning.copies)  # type: ignore[attr-defined]
        score = policy_score(policy)
        rows, logps = sample(llm, injector.request)
        of_trainer = score(policy.adapter, rows)
        off = [mean_difference([a], [b]) for a, b in zip(logps, of_trainer, strict=True)]
        assert max(off[0], off[1], off[3]) < 1e-3 and off[2] > 0.5
        with pytest.raises(RuntimeError, match="vLLM does not"):
            self_test(injector, score, policy.adapter, tolerance=1e-3)

        # One set of factors for all rows is what vLLM computes with.
        fixed = full_policy(location, length=CONTEXT)
        injector = WeightInjector(llm, fixed.tuning.copies)  # type: ignore[attr-defined]
        self_test(injector, policy_score(fixed), fixed.adapter, tolerance=1e-3)
