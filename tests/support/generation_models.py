"""Tiny random models of each family, float64 throughout, and a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral_window_6": lambda: MistralConfig(**SIZES, sliding_window=6),
    "phi": lambda: PhiConfig(**SIZES),
    "gemma3_window_6": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own rounds to float32, even in float64."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.gain = gain
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.gain


def _make_norms_exact(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _exact(child))


def _exact(norm: nn.Module) -> ExactNorm:
    weight = norm.get_parameter("weight").detach()
    if type(norm).__name__ == "Gemma3RMSNorm":
        return ExactNorm(1.0 + weight, float(norm.eps))  # type: ignore[arg-type]
    return ExactNorm(weight, float(norm.variance_epsilon))  # type: ignore[arg-type]


def tiny_model(family: str) -> PreTrainedModel:
    """A random model whose every operation is float64."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float64)  # type: ignore[no-untyped-call]
    _make_norms_exact(model)
    model.train(False)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ids 0 to 255, and the special `<end>`, 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")  # type: ignore[no-untyped-call]
