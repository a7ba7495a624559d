"""An export is loaded by vLLM too, in a process of its own, and calibrated by llmcompressor."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest
import torch
from exported_run import random_adapter, random_model, run_folder

from rlkit.cli import run
from rlkit.exports.child import ask_child, telling_line
from rlkit.exports.compare import compare_likeliest, compare_whole
from rlkit.exports.reference import ScoredRow
from rlkit.policy.lora import LoRAConfig


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    # vLLM on a CPU has no heads narrower than 32.
    source = random_model(
        tmp_path / "base",
        "llama",
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3, alpha=6.0))
    return folder


def export(folder: Path, to: str, out: Path, *more: str) -> int:
    arguments = ["export", "--run", str(folder), "--to", to, "--out", str(out)]
    return run([*arguments, "--prompts", "3", *more])


@pytest.mark.slow
def test_vllm_says_what_the_policy_says(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm")
    out = tmp_path / "out"
    code = export(trained, "merged16", out, "--vllm", "always", "--dtype", "fp32", "--max-kl=1e-4")
    told = capsys.readouterr()
    assert code == 0, told.err
    proofs = [line for line in told.out.splitlines() if "KL(policy || export)" in line]
    assert ["[transformers" in proofs[0], "[vllm" in proofs[1]] == [True, True]
    card = (out / "README.md").read_text()
    assert card.count("| KL(policy, export), nats a token |") == 2


def test_four_bits_of_bitsandbytes_need_a_gpu_in_vllm(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm")
    assert export(trained, "merged4", tmp_path / "out", "--vllm", "always") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--vllm must be auto or never for --to merged4, got always" in line
    assert "on a GPU alone" in line and not (tmp_path / "out").exists()


def test_a_python_without_llmcompressor(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export(trained, "gptq", out, "--calibrator", "/nowhere/python") == 2
    assert "--calibrator must be a Python of 3.11 or newer, got /nowhere/python" in (
        capsys.readouterr().err
    )
    # `-S` hides every installed package, so that this Python has none.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert export(trained, "gptq", out, "--calibrator", str(bare)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--to gptq must have llmcompressor (pip install 'rlkit-lm[calibrate]'" in line
    assert not out.exists()


def test_awq_needs_a_gpu(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = tmp_path / "packages/llmcompressor"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={fake.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    assert export(trained, "awq", out, "--calibrator", str(python)) == 2
    assert "--to awq must be made on a GPU" in capsys.readouterr().err
    assert not out.exists()


def test_a_child_that_fails_leaves_one_line(tmp_path: Path) -> None:
    script = "import sys; print('Traceback'); sys.exit('ValueError: no such layer')"
    with pytest.raises(ValueError, match="it must work, got exit code 1: ValueError: no such la"):
        ask_child([sys.executable, "-c", script], {}, rule="it must work")
    script = "import json, os, sys; open(sys.argv[2], 'w').write(json.dumps(os.environ['RL_X']))"
    command = [sys.executable, "-c", script]
    assert ask_child(command, {}, rule="it must work", environment={"RL_X": "3"}) == "3"
    assert "RL_X" not in os.environ


def test_the_telling_line_is_no_advice() -> None:
    text = "x\nValueError: bad\n  For more visit https://errors.pydantic.dev/2\n\nbye\n"
    assert telling_line(text) == "ValueError: bad"
    assert telling_line("") == "no word"


def test_both_comparisons_are_the_same_where_all_tokens_are_known() -> None:
    """KL and differences by hand for three tokens and two positions."""
    p, q = (
        torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]),
        torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]]),
    )
    row = ScoredRow(ids=(7, 1), first=0, logps=p.log())
    whole = compare_whole(row, q.log())
    kl = [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True))
        for x, y in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert whole.kl.tolist() == pytest.approx(kl, abs=1e-6)
    assert whole.differences.tolist() == pytest.approx([math.log(4 / 3)], abs=1e-6)
    found = [([2, 0, 1], q[n, [2, 0, 1]].log().tolist()) for n in range(2)]
    likeliest = compare_likeliest(row, found)
    assert likeliest.kl.tolist() == pytest.approx(kl, abs=1e-6)
    assert likeliest.differences.tolist() == pytest.approx([math.log(4 / 3)], abs=1e-6)
