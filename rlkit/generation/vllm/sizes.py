"""Size an engine: its cache, its batch, and its share of the device."""

from __future__ import annotations

import psutil
import torch

from rlkit.generation.vllm.config import MAX_NUM_SEQS, VLLMGeneratorConfig
from rlkit.generation.vllm.memory import (
    FP8_BYTES,
    NF4_BYTES,
    OVERHEAD_BYTES,
    Budget,
    Demand,
    cache_shape,
    plan,
    weight_bytes,
)
from rlkit.generation.vllm.spec import EngineSpec

_CPU_BLOCK, _CUDA_BLOCK = 32, 16
_MOST_SEQS = {"cuda": MAX_NUM_SEQS, "cpu": 32}


def max_model_len(spec: EngineSpec) -> int:
    """Add up the tokens of the longest prompt, the longest completion and the guesses behind."""
    return spec.max_prompt_length + spec.max_completion_length + spec.spare_tokens


def block_size(config: VLLMGeneratorConfig, spec: EngineSpec) -> int:
    """Give the tokens of a block of the cache; 0 = vLLM's own choice."""
    return config.block_size or (_CPU_BLOCK if spec.device.type == "cpu" else 0)


def engine_budget(config: VLLMGeneratorConfig, spec: EngineSpec) -> Budget:
    """Size the cache and the batch; raises ValueError when not one completion fits."""
    text = spec.hf_config.get_text_config()
    on_cpu = spec.device.type == "cpu"
    item = spec.dtype.itemsize
    shape = cache_shape(text, bytes_per_value=item if config.kv_cache_dtype == "auto" else 1)
    # A head of keys that there are fewer of than ranks is on several of them.
    shape = shape._replace(num_kv_heads=max(1, shape.num_kv_heads // spec.parts))
    return plan(
        Demand(
            rows=spec.rows,
            tokens_per_row=max_model_len(spec),
            block_size=block_size(config, spec) or _CUDA_BLOCK,
        ),
        shape,
        kv_cache_bytes=config.kv_cache_bytes,
        max_num_seqs=config.max_num_seqs,
        most_seqs=_MOST_SEQS[spec.device.type],
        free_bytes=_free_bytes(spec.device),
        reserved_bytes=_weight_bytes(spec),
        on_cpu=on_cpu,
    )


def memory_share(spec: EngineSpec, budget: Budget) -> float:
    """Give the share of the card that must be free: vLLM refuses to start unless it is.

    The bytes of the cache are told to vLLM directly.
    """
    if spec.device.type != "cuda":
        return 0.5
    total = torch.cuda.mem_get_info(spec.device)[1]
    return min(0.98, (_weight_bytes(spec) + budget.kv_cache_bytes + OVERHEAD_BYTES) / total)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _weight_bytes(spec: EngineSpec) -> int:
    whole = weight_bytes(
        spec.hf_config.get_text_config(),
        bytes_per_parameter=spec.dtype.itemsize,
        bytes_in_layers=NF4_BYTES if spec.four_bit else FP8_BYTES if spec.in_fp8 else None,
    )
    return whole // spec.parts
