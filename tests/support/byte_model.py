"""A model folder small enough to run the real command line on: a random Llama over bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import tiny_config
from tiny_tokenizers import byte_tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_byte_model(folder: Path, *, hidden_size: int = 32) -> Path:
    """A random model in Hugging Face format, with a tokenizer of one token a byte.

    vLLM takes it on a CPU from a hidden size of 128 on, whose heads are 32 wide.
    """
    tokenizer = byte_tokenizer(
        "<pad>", "</s>", pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = tiny_config(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        head_dim=hidden_size // 4,
        intermediate_size=64,
        max_position_embeddings=1024,
        eos_token_id=stop,
        pad_token_id=pad,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=stop, pad_token_id=pad
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
