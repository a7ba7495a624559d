"""A GGUF file of each family computes in llama.cpp what the policy computes in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exported_run import random_adapter, random_model, run_folder

from rlkit.cli import run
from rlkit.policy.lora import LoRAConfig

# What is particular to a family: heads tied or not, biases, fused projections, rope types.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {}),
    "llama, untied, long context": (
        "llama",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral, untied": ("mistral", {}),
    "smollm3, layers without rope": ("smollm3", {"num_hidden_layers": 4}),
    "granite, scales": ("granite", {}),
    "qwen2, biases": ("qwen2", {}),
    "qwen3, norms of q and k": ("qwen3", {}),
    "gemma, norms plus one": ("gemma", {}),
    "gemma2, caps and windows": ("gemma2", {}),
    "gemma3, windows": (
        "gemma3_text",
        {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    ),
    "phi, layer norms and biases": ("phi", {}),
    "phi3, fused projections": ("phi3", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_policy(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, options = CASES[case]
    source = random_model(tmp_path / "base", family, **options)
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3, alpha=6.0))
    out = tmp_path / "out"
    arguments = ["export", "--run", str(folder), "--to", "gguf:f16", "--out", str(out)]
    # Half precision of weights and of llama.cpp's cache costs less than 1e-4 here.
    assert run([*arguments, "--max-kl", "1e-3", "--prompts", "4"]) == 0, capsys.readouterr().err
    assert "KL(policy || export)" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"README.md", "Modelfile", "model-f16.gguf"}
