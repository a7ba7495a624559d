"""A GGUF file of each family computes in llama.cpp what the policy computes in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exported_run import random_adapter, random_model, run_folder
from gguf import GGUFReader, GGUFWriter, TokenType
from tiny_tokenizers import byte_level_tokenizer, sentencepiece_like_tokenizer
from transformers import AutoConfig

from rlkit.cli import run
from rlkit.exports.gguf.vocabulary import add_vocabulary
from rlkit.models import ModelConfig
from rlkit.models.special import Stops
from rlkit.policy.lora import LoRAConfig

# What is particular to a family: heads tied or not, biases, fused projections, rope types.
_FOUR_TIMES = {"rope_theta": 10000.0, "factor": 4.0}
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
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", **_FOUR_TIMES}}),
    "qwen2, yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "original_max_position_embeddings": 64,
                **_FOUR_TIMES,
            }
        },
    ),
}


_OFTEN = ("llama, tied", "qwen2, biases", "gemma, norms plus one", "phi3, fused projections")
"""Each takes two seconds; the others wait for the nightly tests."""


@pytest.mark.parametrize(
    "case", [c if c in _OFTEN else pytest.param(c, marks=pytest.mark.nightly) for c in CASES]
)
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


@pytest.mark.parametrize("to", [pytest.param("gguf:f16", marks=pytest.mark.nightly), "merged16"])
def test_the_rotary_factors_are_those_of_the_run(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `model.rope_length` a run rotates short rows by the factors of long ones."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    }
    source = random_model(
        tmp_path / "base", "phi3", original_max_position_embeddings=32, rope_parameters=rope
    )
    for length in (16, 400):
        model = ModelConfig(source=str(source), rope_length=length)
        folder = run_folder(tmp_path / f"run{length}", source, model=model)
        random_adapter(source, folder, LoRAConfig(rank=3, alpha=6.0))
        out = tmp_path / f"out{length}"
        arguments = ["export", "--run", str(folder), "--to", to, "--out", str(out)]
        code = run([*arguments, "--dtype", "fp32", "--max-kl", "1e-3", "--prompts", "4"])
        assert code == 0, capsys.readouterr().err
        if to == "merged16":
            written = AutoConfig.from_pretrained(out).rope_parameters
            assert (
                written["short_factor"]
                == written["long_factor"]
                == [1.0 if length == 16 else 4.0] * 4
            )


def test_a_tokenizer_with_spaces_in_front_and_bytes_as_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama 2, Gemma and Mistral have such ones, which llama.cpp merges by scores."""
    tokenizer = sentencepiece_like_tokenizer()
    source = random_model(tmp_path / "base", "llama", tokenizer=tokenizer)
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3, alpha=6.0))
    arguments = ["export", "--run", str(folder), "--to", "gguf:f16", "--max-kl", "1e-3"]
    code = run([*arguments, "--out", str(tmp_path / "out"), "--prompts", "4"])
    assert code == 0, capsys.readouterr().err


def test_the_vocabulary_is_written_as_it_is(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    add_vocabulary(writer, tokenizer, Stops(frozenset({3}), ()), num_rows=len(tokenizer) + 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = GGUFReader(tmp_path / "a.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [*tokenizer.convert_ids_to_tokens(list(range(300))), "[PAD300]", "[PAD301]"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[:4] == [TokenType.CONTROL] * 4 and types[4] == TokenType.NORMAL
    assert types[-2:] == [TokenType.UNUSED] * 2
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 3
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
