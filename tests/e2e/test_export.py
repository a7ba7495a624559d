"""`rlkit export`: one folder that computes what the run's policy computes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_tokenizers import letter_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.cli import run
from rlkit.models import ModelConfig, QuantConfig, QuantKind, TuningKind
from rlkit.models.save import MODEL_FOLDER
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.lora_files import ADAPTER_FOLDER, save_adapter
from rlkit.training.memory_config import MemoryConfig

IDS = torch.tensor([[5, 9, 2, 30, 23, 7, 21, 4]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    model = tiny_model("qwen2", dtype=torch.float32, hidden_size=128, max_position_embeddings=512)
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def _run_folder(folder: Path, model: ModelConfig, memory: MemoryConfig) -> None:
    folder.mkdir()
    values = {"seed": 0, "device": "cpu", "model": asdict(model), "memory": asdict(memory)}
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))


def _adapter(source: Path, folder: Path) -> None:
    """An adapter that changes the model by as much as a long training does."""
    config = LoRAConfig(rank=4, alpha=6.0, rslora=True, targets=["q_proj", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(source)
    lora = attach(model.requires_grad_(False), config, dtype=torch.float32)
    adapter = init_adapter(lora, seed=1, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in adapter.items():
            if "lora_B" in key:
                tensor.normal_(0, 0.2, generator=generator)
    save_adapter(folder / ADAPTER_FOLDER, lora, adapter, base_model=str(source))


def _logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_is_what_peft_computes(
    source: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    _run_folder(folder, ModelConfig(source=str(source)), MemoryConfig())
    _adapter(source, folder)
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    assert run(["export", "--run", str(folder), "--out", str(out), "--dtype", name]) == 0
    base = AutoModelForCausalLM.from_pretrained(source)
    plain = base(input_ids=IDS).logits
    model = PeftModel.from_pretrained(base, folder / ADAPTER_FOLDER)
    truth = model(input_ids=IDS).logits
    assert (truth - plain).abs().max() > 1
    if dtype is torch.float32:
        torch.testing.assert_close(_logits(out), truth.detach(), atol=1e-4, rtol=0)
    merged = model.merge_and_unload().state_dict()
    written = load_file(out / "model.safetensors")
    assert all(tensor.dtype is dtype for tensor in written.values())
    for key, tensor in written.items():  # rounded once: within half a unit
        rtol = 2.0**-8 if dtype is torch.bfloat16 else 1e-6
        torch.testing.assert_close(tensor.float(), merged[key], rtol=rtol, atol=1e-6)
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("word")["input_ids"] == letter_tokenizer()("word")["input_ids"]


def test_on_a_4_bit_base_the_sum_is_of_what_was_trained_on(source: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    memory = MemoryConfig(quant=QuantConfig(kind=QuantKind.nf4))
    _run_folder(folder, ModelConfig(source=str(source)), memory)
    _adapter(source, folder)
    assert run(["export", "--run", str(folder), "--out", str(out), "--dtype", "fp32"]) == 0
    written, original = (
        load_file(out / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert written.keys() == original.keys()
    name = "model.layers.0.mlp.up_proj.weight"  # has no adapter: NF4's levels times the scales
    blocks = written[name].view(-1, 64)
    assert all(len(block.unique()) <= 16 for block in blocks)
    assert (written[name] - original[name]).abs().max() > 0
    torch.testing.assert_close(written["lm_head.weight"], original["lm_head.weight"])


def test_a_run_that_trained_all_weights(source: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    _run_folder(folder, ModelConfig(source="gone", tuning=TuningKind.full), MemoryConfig())
    source.rename(folder / MODEL_FOLDER)
    assert run(["export", "--run", str(folder), "--out", str(out), "--dtype", "fp32"]) == 0
    assert torch.equal(_logits(out), _logits(folder / MODEL_FOLDER))


def test_bad_input(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run(["export", "--run", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "--run must be the folder of a run" in capsys.readouterr().err
    _run_folder(folder, ModelConfig(source=str(source)), MemoryConfig())
    assert run(["export", "--run", str(folder), "--out", str(source)]) == 2
    assert "--out must be a new folder" in capsys.readouterr().err
    assert run(["export", "--run", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
