"""`generate` takes its model's options from a run and from the hub's cache, on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from cli_process import RunCLI, environment
from tiny_models import tiny_model
from tiny_tokenizers import byte_level_tokenizer


def test_a_cached_hub_model_needs_no_hub(model_folder: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    cached = tmp_path / "hub/models--me--tiny"
    shutil.copytree(model_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "rlkit", "generate", "--model", "me/tiny", "--max-tokens=2", "hi"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **environment(),
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
        },
    )
    assert result.returncode == 0, result.stderr
    assert "http://127.0.0.1:9 does not answer" in result.stdout
    assert "the cached copy of me/tiny is used" in result.stdout
    # The hub's client says so for every file, and would wait 23 s for each.
    assert "Retrying" not in result.stdout + result.stderr
    assert time.monotonic() - start < 100


def test_a_model_of_a_full_run_keeps_the_rope_length_that_it_was_trained_with(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    """Its factors change beyond 32 tokens; rows across that need one set of factors."""
    tokenizer = byte_level_tokenizer()
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    switch = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    model = tiny_model(
        "phi3",
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        original_max_position_embeddings=32,
        rope_parameters={**factors, **switch},
    )
    folder = tmp_path / "phi3"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = "".join(json.dumps({"q": f"Say {i}."}) + "\n" for i in range(8))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "own.py").write_text("def score(group):\n    return [1.0] * len(group)\n")
    result = rlkit(
        *[o for o in small if not o.startswith(("model.source", "task=", "+reward"))],
        *(f"model.source={folder}", "model.tuning=full", "model.rope_length=68"),
        *("task=dataset", "task.path=rows.jsonl", "task.eval_fraction=0.5", "steps=1"),
        *("task.max_prompt_length=60", "task.max_completion_length=8", "run_dir=run"),
        *("+task.columns.prompt=q", "+reward.functions.mine.fn=own.py:score"),
    )
    assert result.returncode == 0, result.stderr
    plain = rlkit("generate", "--model", str(folder), "--max-tokens=40", "hi")
    assert plain.returncode == 2
    assert "together must have <= 32 tokens" in plain.stderr
    result = rlkit("generate", "--run", "run", "--max-tokens=40", "hi")
    assert result.returncode == 0, result.stderr


def test_the_plan_has_the_adapter_that_stays_as_the_reference(
    rlkit: RunCLI, small: list[str]
) -> None:
    result = rlkit(*small, "steps=1", "run_dir=run")
    assert result.returncode == 0, result.stderr
    new = rlkit("check", *small).stdout
    trained_on = rlkit("check", *small, "model.adapter=run/adapter").stdout
    assert "reference adapter (fp32)" not in new
    assert "reference adapter (fp32)" in trained_on
    merged = rlkit("check", *small, "model.adapter=run/adapter", "model.adapter_use=merge")
    assert merged.returncode == 0, merged.stderr
    assert "reference adapter (fp32)" not in merged.stdout
