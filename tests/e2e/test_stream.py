"""Runs with vLLM and `environment.admission=stream`: what a resumed run repeats, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_process import from_the_start
from digits_environment import MODULE

from benchmarks.random_model import write_random_model
from rlkit.generation.vllm.config import is_installed
from rlkit.training import rollout_files

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]


def test_a_resumed_stream_repeats_the_tokens_in_float32(tmp_path: Path) -> None:
    """Tokens, turns and rewards are those of the whole run; logps and weights within rounding."""
    write_random_model(tmp_path / "tiny", "tiny", dtype=torch.float32)
    (tmp_path / "digits.py").write_text(MODULE)
    options = [
        f"model.source={tmp_path / 'tiny'}",
        "generator=vllm",
        "task=echo",
        "model.chat_template=rlkit_plain",
        "task.max_prompt_length=300",
        "task.max_completion_length=120",
        f"environment.fn={tmp_path / 'digits.py'}:Digits",
        "environment.max_turn_tokens=12",
        "environment.cut_turns=answer",
        "environment.admission=stream",
        "prompts_per_step=2",
        "algorithm.group_size=4",
        "evaluation.num_prompts=1",
        "evaluation.samples_per_prompt=1",
        "memory.torch_threads=1",
        "reward.workers=1",
        "checkpoint.every=1",
        "checkpoint.keep_every=1",
    ]
    for name, steps, resume in (("whole", 4, "never"), ("parts", 2, "never"), ("parts", 4, "must")):
        more = (f"run_dir={name}", f"steps={steps}", f"resume={resume}")
        done = from_the_start(*options, *more, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "a step that is made again may differ by rounding" in done.stdout
    for step in range(4):
        one, other = (
            rollout_files.load(tmp_path / name, step, device=torch.device("cpu")).batch
            for name in ("whole", "parts")
        )
        assert torch.equal(one.completion_ids, other.completion_ids), step
        assert torch.equal(one.completion_mask, other.completion_mask)
        assert one.turn_rewards is not None and other.turn_rewards is not None
        assert torch.equal(one.turn_rewards, other.turn_rewards)
        torch.testing.assert_close(one.sampling_logps, other.sampling_logps, rtol=0, atol=2e-4)
    a, b = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "parts")
    )
    assert [row["reward"] for row in a] == [row["reward"] for row in b]
    assert [row["grad_norm"] for row in a] == pytest.approx(
        [row["grad_norm"] for row in b], rel=1e-3
    )
