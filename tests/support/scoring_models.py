"""Reward models wide enough that their bytes are those of a plan: a classifier, and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from rlkit.models.config import LoRAConfig
from rlkit.policy.lora import attach, init_adapter
from rlkit.reward_models.adapter import RewardAdapter, SharedBase, save_reward_adapter
from rlkit.reward_models.batches import LinearHead

KEY = "reward.functions.rm.options"
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


def largest_rows(most: int, longest: int) -> list[list[int]]:
    """Rows that fill one batch of `most` tokens; all but the first need padding."""
    draw = torch.Generator().manual_seed(0)
    lengths = [longest - (i > 0) for i in range(most // longest)]
    return [torch.randint(4, 200, (n,), generator=draw).tolist() for n in lengths]


def wide_classifier(folder: Path, family: str, **options: Any) -> None:
    """Write a random classifier of one label with its tokenizer; `options` change its shape."""
    tokenizer = byte_level_tokenizer()
    if family != "gpt_neox":
        options = {"num_key_value_heads": 2, **options}
    made: Any = CONFIG_MAPPING[family]
    config = made(
        vocab_size=len(tokenizer),
        num_labels=1,
        pad_token_id=3,
        eos_token_id=3,
        **{**WIDE, **options},
    )
    torch.manual_seed(0)
    auto: Any = AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def base_of(dtype: torch.dtype, device: str | torch.device = "cpu") -> SharedBase:
    """A policy's base with hooks for adapters."""
    tokenizer = byte_level_tokenizer()
    model: PreTrainedModel = tiny_model("llama", dtype=dtype, vocab_size=len(tokenizer), **WIDE)
    torch.nn.Module.to(model, device)
    lora = attach(model, LoRAConfig(), dtype=dtype)
    return SharedBase(model=model, lora=lora, tokenizer=tokenizer, location="tiny")


def reward_adapter_of(base: SharedBase, folder: Path) -> RewardAdapter:
    """A reward model with random factors and head on `base`, saved as well."""
    draw = torch.Generator().manual_seed(1)
    adapter = init_adapter(base.lora, seed=1, device=base.device)
    for name, tensor in adapter.items():
        if name.endswith("lora_B.weight"):
            tensor.data = (0.05 * torch.randn(tensor.shape, generator=draw)).to(tensor)
    width = int(base.model.config.hidden_size)
    head = LinearHead(torch.randn(1, width, generator=draw).to(base.device))
    found = RewardAdapter(adapter={k: v.detach() for k, v in adapter.items()}, head=head)
    save_reward_adapter(folder, found, base, record={})
    return found
