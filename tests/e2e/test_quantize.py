"""`rlkit quantize` from the command line to a folder that loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import byte_level_tokenizer, letter_tokenizer

from rlkit.cli import run
from rlkit.models import ModelConfig
from rlkit.models.load import load_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    model = tiny_model("llama", dtype=torch.float32, hidden_size=128, max_position_embeddings=2048)
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder_with_the_worst_layers_in_16_bits(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quantised"
    arguments = ["quantize", f"out={out}", "budget=80KB", "prompts=2", f"model.source={source}"]
    assert run([*arguments, "task.max_prompt_length=1500", "device=cpu"]) == 0
    text = capsys.readouterr().out
    record = json.loads((out / "rlkit_quantize.json").read_text())
    kept = record["kept"]
    assert 0 < len(kept) < len(record["units"]) == 8
    spent = sum(u["extra_bytes"] for u in record["units"] if u["unit"] in kept)
    assert spent <= 80_000
    assert f"{len(kept)} of 8 kept: {spent / 1e6:.1f}" in text
    (plain, plain_kl), (dynamic, dynamic_kl) = record["bytes_and_kl"].values()
    assert dynamic > plain
    assert dynamic_kl < plain_kl
    assert f"the folder        {dynamic / 1e9:7.3f}  {dynamic_kl:.5f}" in text
    config = ModelConfig(source=str(out))
    base = load_model(config, device=torch.device("cpu"), say=lambda _: None)
    skipped = base.model.config.quantization_config.llm_int8_skip_modules
    assert set(kept) <= set(skipped)  # vLLM looks for the fused names
    assert "lm_head" in skipped
    assert run(["quantize", f"out={out}-again", f"model.source={out}"]) == 2
    assert "model.source must hold 16- or 32-bit weights" in capsys.readouterr().err


def test_bad_input(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lonely = ["quantize", f"out={source}-q", f"model.source={source}", "environment.max_turns=3"]
    assert run([*lonely, "budget=8KB"]) == 2
    assert "environment.max_turns must be left alone" in capsys.readouterr().err
    assert run(["quantize", "budget=8KB"]) == 2
    assert "out must be given" in capsys.readouterr().err
    assert run(["quantize", f"out={source}", f"model.source={source}"]) == 2
    assert "out must be a new folder" in capsys.readouterr().err
    assert run(["quantize", f"out={source}-q", "budget=lots", f"model.source={source}"]) == 2
    assert "budget must be a size such as 24GB" in capsys.readouterr().err


def test_check_prints_the_plan_or_the_way_out(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", f"model.source={source}", "memory.budget=3GB"]) == 2
    error = capsys.readouterr().err
    assert "</answer>, <answer>: text that the tokenizer cannot write" in error  # letters only
    tokenizer = byte_level_tokenizer()
    model = tiny_model(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=2048
    )
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    assert run(["check", f"model.source={source}", "memory.budget=3GB"]) == 0
    text = capsys.readouterr().out
    assert "CUDA context" in text  # a card of that size, though there is none here
    assert re.search(r"memory plan: [1-9]\d+ tokens a micro-batch", text)
    assert run(["check", f"model.source={source}", "memory.budget=100MB"]) == 1
    assert "memory must be at least" in capsys.readouterr().err
    for override, message in (
        ("task.max_completion_length=5000", "must be <= 2048, the model's context"),
        ("model.lora.rank=600", "model.lora.rank must be <= 512 with generator=vllm"),
    ):
        assert run(["check", f"model.source={source}", "generator=vllm", override]) == 2
        assert message in capsys.readouterr().err
