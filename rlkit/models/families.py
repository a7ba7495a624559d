"""List the model families that rlkit scores exactly, and what each does after the head.

logits = softcap(logit_scale (h W^T + bias)), softcap(x) = c tanh(x / c). A family is listed once a
test compares it with transformers' own logits; others could scale theirs in ways unknown here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = (
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Values of `model_type` in config.json."""


class Head(NamedTuple):
    """The language-model head, as the log-prob kernels want it."""

    weight: Tensor
    """(V, D), the embedding itself when tied."""
    bias: Tensor | None
    logit_scale: float
    softcap: float | None


def check_family(model_type: str, *, source: str) -> None:
    """Raise ValueError unless `model_type` is one of `FAMILIES`."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model.source must be a causal language model of a supported family "
            f"({', '.join(FAMILIES)}), got {source} of type {model_type}"
        )


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a causal language model of one of `FAMILIES`."""
    config = model.config
    check_family(config.model_type, source=str(config.name_or_path))
    linear: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"the language-model head must be nn.Linear, got {type(linear).__name__}")
    scale = 1.0
    if config.model_type == "cohere":
        scale = float(config.logit_scale)
    elif config.model_type == "granite":
        scale = 1.0 / float(config.logits_scaling)
    caps = config.model_type in ("gemma2", "gemma3_text")
    softcap = config.final_logit_softcapping if caps else None
    return Head(linear.weight, linear.bias, scale, softcap)


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """Return the model without its head: token ids to hidden states after the final norm."""
    backbone = model.base_model
    if not isinstance(backbone, nn.Module) or backbone is model:
        raise ValueError(f"{type(model).__name__} has no backbone apart from its head")
    return backbone
