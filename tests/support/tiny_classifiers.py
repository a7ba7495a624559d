"""Small random sequence classifiers whose padding rules differ, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import byte_level_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

PAD, BOS, START, END = 0, 1, 2, 3
"""Special tokens of `byte_level_tokenizer`."""

_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "own pad": ("llama", {**_GROUPED, "pad_token_id": PAD, "eos_token_id": END}),
    "pad is eos": ("qwen2", {**_GROUPED, "pad_token_id": END, "eos_token_id": END}),
    "no pad, learned positions": (
        "gpt2",
        {
            **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
            **{"initializer_range": 0.3, "eos_token_id": END, "pad_token_id": None},
            **{"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
        },
    ),
    "pad is a word": ("gpt_neox", {**_DECODER, "pad_token_id": 40, "eos_token_id": END}),
    "encoder, positions by pad": (
        "roberta",
        {
            **_DECODER,
            **{"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END},
            **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        },
    ),
}


def write_classifier(folder: Path, kind: str, *, num_labels: int = 1) -> PreTrainedModel:
    """A random classifier of `kind` with a byte-level tokenizer, saved and returned."""
    family, options = KINDS[kind]
    tokenizer = byte_level_tokenizer()
    config = CONFIG_MAPPING[family](
        **{"vocab_size": len(tokenizer), "num_labels": num_labels, **options}
    )
    torch.manual_seed(len(kind))
    auto: Any = AutoModelForSequenceClassification
    model: PreTrainedModel = auto.from_config(config)
    model.train(False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
