"""A run's folder with a random model and adapter, as a long training leaves it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from tiny_models import tiny_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import PreTrainedTokenizerBase

from rlkit.models import ModelConfig
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.lora_files import ADAPTER_FOLDER, save_adapter
from rlkit.training.memory_config import MemoryConfig

CPU = torch.device("cpu")


def random_model(
    folder: Path,
    family: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: object,
) -> Path:
    """Write a random model of `family` with a byte-level tokenizer, or another, and return it."""
    tokenizer = tokenizer or byte_level_tokenizer()
    values: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = tiny_model(family, dtype=torch.float32, **{**values, **options})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_folder(
    folder: Path,
    source: Path,
    *,
    model: ModelConfig | None = None,
    memory: MemoryConfig | None = None,
    task: str = "max_of_n",
) -> Path:
    """Write the config.yaml of a run on the model at `source`."""
    folder.mkdir()
    model = model or ModelConfig(source=str(source))
    values = {
        "seed": 0,
        "device": "cpu",
        "model": asdict(model),
        "memory": asdict(memory or MemoryConfig()),
        "task": {"name": task, "seed": 0, "max_completion_length": 8},
        "generator": {"sampling": {"temperature": 0.9, "top_p": 0.95}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return folder


def random_adapter(
    source: Path, run: Path, config: LoRAConfig, *, size: float = 0.2
) -> dict[str, torch.Tensor]:
    """Write an adapter that changes the model by as much as a long training does."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    lora = attach(model.requires_grad_(False), config, dtype=torch.float32)
    adapter = init_adapter(lora, seed=1, device=CPU)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in adapter.items():
            if "lora_B" in key:
                tensor.normal_(0, size, generator=generator)
    save_adapter(run / ADAPTER_FOLDER, lora, adapter, base_model=str(source))
    return adapter
