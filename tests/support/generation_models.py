"""Tiny random models of each family, float64 throughout."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import NO_SPECIAL_TOKENS, tiny_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 300
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral_window_6": ("mistral", {"head_dim": None, "sliding_window": 6}),
    "phi": ("phi", {}),
    "gemma3_window_6": (
        "gemma3_text",
        {"sliding_window": 6, "final_logit_softcapping": None, "query_pre_attn_scalar": 256},
    ),
}
"""The family of each, and how it differs from that of `tiny_models`."""


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
    name, options = CONFIGS[family]
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 128, **NO_SPECIAL_TOKENS}
    config = tiny_config(name, **sizes, **options)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float64)  # type: ignore[no-untyped-call]
    _make_norms_exact(model)
    model.train(False)
    return model
