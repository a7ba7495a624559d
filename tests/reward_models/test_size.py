"""The plan's line of reward models against the bytes of the tensors that scoring makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plan_works import step_work
from scoring_models import KEY, base_of, largest_rows, reward_adapter_of, wide_classifier

from rlkit.models.config import DType, LoRAConfig
from rlkit.plan.live import LiveBytes
from rlkit.reward_models.batches import score_rows
from rlkit.reward_models.classifier import Classifier
from rlkit.reward_models.options import RewardModelOptions
from rlkit.reward_models.size import device_bytes
from rlkit.rewards import RewardFunctionConfig

CPU = torch.device("cpu")
MOST, LONGEST = 2048, 256


def functions(source: Path, **options: object) -> dict[str, RewardFunctionConfig]:
    """A reward model `rm`, with batches of 2,048 tokens."""
    limits = {"max_tokens_per_batch": MOST, "max_length": LONGEST}
    named = {"source": str(source), **limits, **options}
    return {"rm": RewardFunctionConfig(fn="reward_model", options=named)}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [DType.fp32, DType.bf16])
def test_a_classifiers_line_holds_its_largest_batch(
    tmp_path: Path, family: str, dtype: DType
) -> None:
    wide_classifier(tmp_path, family)
    found = device_bytes(functions(tmp_path, dtype=dtype), CPU, on_base=lambda n: 0, itemsize=0)
    options = RewardModelOptions(source=str(tmp_path), dtype=dtype)
    with LiveBytes() as live:
        model = Classifier(KEY, options, CPU)
        live.restart_peak()
        weights = live.now
        score_rows(largest_rows(MOST, LONGEST), model.score, max_tokens=MOST, pad_id=0, device=CPU)
        batch = live.peak - weights
    own = sum(p.numel() * p.element_size() for p in model.model.parameters())
    assert found.kept == own
    assert 0.35 * found.batch < batch <= found.batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapters_line_holds_its_largest_batch(tmp_path: Path, dtype: torch.dtype) -> None:
    base = base_of(dtype)
    adapter = reward_adapter_of(base, tmp_path / "rm")
    work = replace(
        step_work("qwen2.5-1.5b", 1, 1, 8, on_cuda=False),
        hf_config=base.model.config,
        dtype=dtype,
        lora=LoRAConfig(),
    )
    found = device_bytes(
        functions(tmp_path / "rm"), CPU, on_base=work.prefill_bytes, itemsize=dtype.itemsize
    )
    tensors = [*adapter.adapter.values(), adapter.head.weight]
    assert found.kept == pytest.approx(sum(t.nbytes for t in tensors), rel=0.02)
    rows = largest_rows(MOST, LONGEST)
    adapter.scores(base, rows[:1], max_tokens=LONGEST)
    with LiveBytes() as live:
        adapter.scores(base, rows, max_tokens=MOST)
    assert 0.35 * found.batch < live.peak <= found.batch


def test_models_score_one_after_the_other(tmp_path: Path) -> None:
    wide_classifier(tmp_path, "llama")
    one = device_bytes(functions(tmp_path), CPU, on_base=lambda n: 0, itemsize=0)
    two = {**functions(tmp_path), "small": functions(tmp_path, max_tokens_per_batch=1)["rm"]}
    both = device_bytes(two, CPU, on_base=lambda n: 0, itemsize=0)
    assert (both.kept, both.batch) == (2 * one.kept, one.batch)
    elsewhere = functions(tmp_path, device="process")
    assert device_bytes(elsewhere, CPU, on_base=lambda n: 0, itemsize=0) == (0, 0)
