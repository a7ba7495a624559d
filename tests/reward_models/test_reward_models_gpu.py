"""Reward models on a card: the scores of a CPU, and no more memory than the plan's line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_judge import group_of
from plan_works import step_work
from scoring_models import KEY, base_of, largest_rows, reward_adapter_of, wide_classifier
from tiny_classifiers import END, KINDS, write_classifier

from rlkit.models.config import LoRAConfig
from rlkit.reward_models.adapter import load_reward_adapter
from rlkit.reward_models.batches import score_rows
from rlkit.reward_models.classifier import Classifier
from rlkit.reward_models.options import RewardModelOptions, reward_model_options
from rlkit.reward_models.scorer import RewardModelScorer
from rlkit.reward_models.size import device_bytes
from rlkit.rewards import RewardFunctionConfig, RewardSpec

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
ROWS = [[5, 9, 40, 8, END], [7], [40, 40, 40], [11, 12, END, END], list(range(4, 40)), [9, END]]


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def functions(source: Path) -> dict[str, RewardFunctionConfig]:
    return {"rm": RewardFunctionConfig(fn="reward_model", options={"source": str(source)})}


def settled() -> int:
    """Return the bytes of live tensors, and begin to look for their peak."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_classifier_scores_as_on_a_cpu(kind: str, tmp_path: Path) -> None:
    write_classifier(tmp_path, kind)
    found = {}
    for device in (CPU, cuda()):
        options = reward_model_options(
            RewardSpec("rm", "reward_model", 1.0, {"source": str(tmp_path), "dtype": "fp32"})
        )
        model = Classifier(KEY, options, device)
        for most in (1, 40, 10_000):
            found[device.type, most] = score_rows(
                ROWS, model.score, max_tokens=most, pad_id=model.pad_id, device=device
            )
    for most in (1, 40, 10_000):
        assert found["cuda", most] == pytest.approx(found["cpu", 1], abs=2e-4, rel=2e-4)


def test_the_scorer_of_a_run_takes_the_card_and_16_bits(tmp_path: Path) -> None:
    write_classifier(tmp_path, "pad is eos")
    replies = {}
    for device in (CPU, cuda()):
        spec = RewardSpec("rm", "reward_model", 1.0, {"source": str(tmp_path)})
        scorer = RewardModelScorer(spec, device=device, is_chat=False)
        scorer.check()
        scorer.start()
        groups = [group_of("one", "two words"), group_of("three", "and more " * 20, index=1)]
        replies[device.type] = [r.values for r in scorer.score(groups).groups]
        scorer.close()
    for here, there in zip(replies["cpu"], replies["cuda"], strict=True):
        assert there == pytest.approx(here, abs=0.1, rel=0.05)
        assert there != here  # 16 bits of the backbone against 32


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_a_classifiers_bytes_are_within_the_plans_line(family: str, tmp_path: Path) -> None:
    """Layers of Skywork-Reward-V2-Qwen3-0.6B's size and the default batch: 16,384 tokens."""
    wide_classifier(tmp_path, family, hidden_size=1024, intermediate_size=3072,
                    num_attention_heads=16)  # fmt: skip
    line = device_bytes(functions(tmp_path), cuda(), on_base=lambda n: 0, itemsize=0)
    options = RewardModelOptions(source=str(tmp_path))
    before = settled()
    model = Classifier(KEY, options, cuda())
    kept = settled() - before
    assert kept == pytest.approx(line.kept, rel=0.02)
    rows = largest_rows(options.max_tokens_per_batch, options.max_length)
    scores = score_rows(
        rows, model.score, max_tokens=options.max_tokens_per_batch, pad_id=0, device=cuda()
    )
    batch = torch.cuda.max_memory_allocated() - before - kept
    print(f"{family}: planned {line}, taken {kept} and {batch}")
    assert all(map(torch.isfinite, torch.tensor(scores)))
    assert 0.25 * line.batch < batch <= line.batch


def test_an_adapter_on_the_frozen_base_scores_as_on_a_cpu_within_the_plans_line(
    tmp_path: Path,
) -> None:
    here = base_of(torch.float32)
    folder = tmp_path / "rm"
    truth = reward_adapter_of(here, folder).scores(here, ROWS, max_tokens=99)
    there = base_of(torch.float32, cuda())
    weights = {k: v.clone() for k, v in there.model.state_dict().items()}
    work = replace(
        step_work("qwen2.5-1.5b", 1, 1, 8),
        hf_config=there.model.config,
        dtype=torch.float32,
        lora=LoRAConfig(),
    )
    line = device_bytes(functions(folder), cuda(), on_base=work.prefill_bytes, itemsize=4)
    before = settled()
    found = load_reward_adapter(KEY, str(folder), there)
    kept = settled() - before
    assert kept <= 1.05 * line.kept + 2**20  # there is no second copy of the base
    for most in (1, 40, 10_000):
        assert found.scores(there, ROWS, max_tokens=most) == pytest.approx(
            truth, abs=5e-4, rel=5e-4
        )
    options = RewardModelOptions(source=str(folder))
    rows = largest_rows(options.max_tokens_per_batch, options.max_length)
    start = settled()
    found.scores(there, rows, max_tokens=options.max_tokens_per_batch)
    batch = torch.cuda.max_memory_allocated() - start
    print(f"planned {line}, taken {kept} and {batch}")
    assert 0.25 * line.batch < batch <= line.batch
    assert all(torch.equal(v, weights[k]) for k, v in there.model.state_dict().items())
