"""rlkit's memory is measured by these models and this work, as shapes: no weights, no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, LoRAConfig, QuantConfig, QuantKind
from rlkit.plan.parts import Request
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """This row has a model's shape, one step's work, and sizes in GB."""

    name: str
    family: str
    shape: dict[str, Any]
    rows: int
    max_prompt: int
    max_completion: int
    claimed: float
    """Unsloth's claim (documents of February 2025), total GPU memory."""
    target: float
    """rlkit must stay below this."""
    optim: OptimKind = OptimKind.adamw8bit

    def hf_config(self) -> PreTrainedConfig:
        """Return the architecture in transformers."""
        return CONFIG_MAPPING[self.family](**self.shape)

    def work(self, sampler: Sampler = Sampler.vllm) -> Work:
        """Return one QLoRA step: rank 16 on all linear layers; an engine gives its cache back."""
        return Work(
            hf_config=self.hf_config(),
            dtype=torch.bfloat16,
            quant=QuantConfig(kind=QuantKind.nf4),
            lora=LoRAConfig(),
            optim=self.optim,
            sampler=sampler,
            releases_kv=True,
            kv_value_bytes=2,
            num_prompts=1,
            group_size=self.rows,
            max_prompt=self.max_prompt,
            max_completion=self.max_completion,
            max_at_once=self.rows,
            rows_per_unit=1,
            critic=False,
            full_kl=False,
            on_cuda=True,
        )

    def request(self) -> Request:
        """Everything left to the plan."""
        return Request(
            tokens_per_microbatch=8192,
            checkpointing=Checkpointing.auto,
            kv_cache_bytes=0,
        )


def _shape(d: int, inner: int, layers: int, heads: int, kv: int, words: int) -> dict[str, Any]:
    return {
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


ROWS = (
    Headline(
        name="Qwen2.5-1.5B, 8 x 1,024 tokens",
        family="qwen2",
        shape={**_shape(1536, 8960, 28, 12, 2, 151936), "tie_word_embeddings": True},
        rows=8,
        max_prompt=200,
        max_completion=824,
        claimed=5.0,
        target=3.8,
    ),
    Headline(
        name="Llama-3.1-8B, 8 x 20,480 tokens",
        family="llama",
        shape=_shape(4096, 14336, 32, 32, 8, 128256),
        rows=8,
        max_prompt=480,
        max_completion=20000,
        claimed=54.3,
        target=24.0,
    ),
    Headline(
        name="Phi-4 (14B), 8 x 1,024 tokens",
        family="phi3",
        shape=_shape(5120, 17920, 40, 40, 10, 100352),
        rows=8,
        max_prompt=200,
        max_completion=824,
        claimed=15.0,
        target=13.5,
    ),
    Headline(
        name="Llama-3.3-70B, 8 x 1,024 tokens",
        family="llama",
        shape=_shape(8192, 28672, 80, 64, 8, 128256),
        rows=8,
        max_prompt=200,
        max_completion=824,
        claimed=48.0,
        target=45.0,
    ),
)
