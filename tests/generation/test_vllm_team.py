"""Two ranks are one vLLM engine: adapters cut into its parts, against transformers, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from vllm_models import CONFIGS, SCALE, linear_layers, logps_of, merged, random_lora, save_tiny

from benchmarks.random_model import byte_tokenizer
from rlkit.generation.vllm.config import VLLMGeneratorConfig, is_installed
from rlkit.generation.vllm.probe import mean_difference, mismatch_limit

RANK = 16
LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "gate_up_proj")


def one_key_head(folder: Path) -> str:
    """A Llama with one head of keys, which two ranks cannot share: both have it."""
    torch.manual_seed(1)
    config: Any = CONFIGS["llama"]()
    config.num_key_value_heads = 1
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
def test_each_part_of_an_engine_applies_its_part_of_an_adapter(tmp_path: Path) -> None:
    folders = [save_tiny(tmp_path / "llama", "llama"), one_key_head(tmp_path / "one")]
    folders += [save_tiny(tmp_path / "phi3", "phi3_fused")]
    for folder in folders:
        byte_tokenizer().save_pretrained(folder)
    ranks = run_ranks("team_runs:adapters", 2, *folders, timeout=280)
    for folder, first, second in zip(folders, *ranks, strict=True):
        assert "one engine of 2 ranks" in first["summary"]
        # Both ranks sample the same tokens with the same logps, bit for bit.
        assert first["samples"] == second["samples"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        layers = linear_layers(model, (*LEAVES, *FUSED))
        texts = set()
        for name, (rows, logps) in first["samples"].items():
            adapter = random_lora(model, layers, rank=RANK, seed=int(name[-1]))
            with merged(model, adapter, scale=SCALE):
                truth = logps_of(model, rows)
            assert mean_difference(logps, truth) < mismatch_limit(torch.float32), (folder, name)
            plain = mean_difference(logps, logps_of(model, rows))
            assert plain > 20 * mismatch_limit(torch.float32), (folder, name)
            texts.add(str(rows))
        assert len(texts) == 2  # an adapter by three ways samples the same, and two do not
        for rank in (first, second):
            assert rank["wrong"] == [0, 2 * len(layers)]
        # A rank holds less than all of an adapter: of each layer A or B is cut in two.
        whole = sum(t.numel() for t in random_lora(model, layers, rank=RANK, seed=0).values())
        assert first["held"] == second["held"] < 0.9 * whole


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"weights": "shared"}, "generator.weights must be auto, separate or sleep with"),
        ({"quantization": "nf4"}, "generator.quantization must be none with"),
        ({"lora": "dense"}, "generator.lora must be auto or punica with"),
    ],
)
def test_what_needs_whole_layers_is_refused(option: dict[str, str], line: str) -> None:
    from rlkit.generation.vllm import config as options

    kinds = {
        "weights": options.Weights,
        "quantization": options.Quantization,
        "lora": options.Products,
    }
    values: dict[str, Any] = {name: kinds[name](value) for name, value in option.items()}
    with pytest.raises(ValueError, match=r"generator\.tensor_parallel above 1") as caught:
        VLLMGeneratorConfig(tensor_parallel=2, **values)
    assert str(caught.value).startswith(line)
    assert str(caught.value).endswith(f", got {next(iter(option.values()))}")
