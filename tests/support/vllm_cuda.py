"""An engine on a CUDA device with what its tests compare it with, for test_vllm_gpu.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vllm_models import LEAVES, SCALE, key, linear_layers, logps_of, merged, random_lora

from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm.config import KVCacheDType, Products
from rlkit.generation.vllm.engine import start_engine
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import mean_difference, mismatch_limit, sample
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.generation.vllm.weights import weight_views
from rlkit.models.views import model_on_views


class Cuda(NamedTuple):
    """An engine, the model on its weights, and one loaded from the files, in bfloat16."""

    engine: Any
    llm: Any
    hf: PreTrainedModel
    own: PreTrainedModel
    views: dict[str, Tensor]
    added_bytes: int
    """The model on the engine's weights takes this beside them."""
    summary: str
    products: Products

    def injector(self, scale: float = SCALE) -> LoRAInjector:
        return LoRAInjector(self.llm, linear_layers(self.own), rank=16, scale=scale, key=key)

    def adapter(self, seed: int) -> dict[str, Tensor]:
        tensors = random_lora(self.own, linear_layers(self.own), rank=16, seed=seed)
        return {name: tensor.to(self.own.device) for name, tensor in tensors.items()}

    def score(self, tensors: Any, rows: Any) -> list[list[float]]:
        with merged(self.own, tensors):
            return logps_of(self.own, rows)

    def error(self, request: Any, tensors: dict[str, Tensor] | None) -> float:
        rows, logps = sample(self.llm, request)
        return mean_difference(logps, self.score(tensors, rows))


@contextmanager
def started(starter: str, kv_cache_dtype: KVCacheDType, products: Products) -> Iterator[Cuda]:
    """The engine for 8 completions of 128 tokens, until the block ends."""
    device = torch.device("cuda", torch.cuda.current_device())
    config = VLLMGeneratorConfig(
        release_kv_cache=True,
        kv_cache_bytes=2**30,
        kv_cache_dtype=kv_cache_dtype,
        lora=products,
    )
    spec = EngineSpec(
        location=starter,
        revision=None,
        hf_config=AutoConfig.from_pretrained(starter),
        dtype=torch.bfloat16,
        device=device,
        max_prompt_length=128,
        max_completion_length=128,
        rows=8,
        lora_rank=16,
        lora_modules=LEAVES,
    )
    engine = start_engine(config, spec, say=print)
    before = torch.cuda.memory_allocated()
    views = weight_views(engine.llm)
    hf = model_on_views(
        spec.hf_config, views, starter, dtype=torch.bfloat16, device=device, attention="sdpa"
    )
    hf.train(False)
    added = torch.cuda.memory_allocated() - before
    own = AutoModelForCausalLM.from_pretrained(
        starter, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    torch.nn.Module.to(own, device)
    own.train(False)
    try:
        yield Cuda(engine, engine.llm, hf, own, views, added, engine.summary, products)
    finally:
        engine.close()


def limit_of(cuda: Cuda) -> float:
    cache = cuda.llm.llm_engine.vllm_config.cache_config.cache_dtype
    return mismatch_limit(torch.bfloat16, kv_cache_bits=8 if "fp8" in str(cache) else 16)


def token_ids(device: torch.device) -> Tensor:
    return torch.arange(120, device=device).view(2, 60) * 397 % 49152
