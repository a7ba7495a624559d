"""An engine that cannot work is refused in one line, before it is built."""

from __future__ import annotations

import torch

from rlkit.generation.speculation import refuse_speculation
from rlkit.generation.vllm.compat.check import Support
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import Compilation, VLLMGeneratorConfig, Weights, slot_rank
from rlkit.generation.vllm.sizes import max_model_len
from rlkit.generation.vllm.spec import EngineSpec

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_options(config: VLLMGeneratorConfig, spec: EngineSpec) -> None:
    """Raise ValueError for options that do not fit the model, its device or its ranks."""
    slot_rank(max(spec.lora_rank, 1))
    if spec.team is not None and spec.four_bit:
        rule = "1 for a 4-bit model"
        raise ValueError(f"generator.tensor_parallel must be {rule}, got {spec.team.size}")
    if spec.dtype not in _DTYPES:
        raise ValueError(f"model.dtype must be bf16, fp16 or fp32 for vLLM, got {spec.dtype}")
    context = getattr(spec.hf_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_model_len(spec) > context:
        raise ValueError(
            "task.max_prompt_length + task.max_completion_length must be <= "
            f"{context - spec.spare_tokens}, the model's context"
            f"{' less generator.speculation.tokens' if spec.spare_tokens else ''}, got "
            f"{max_model_len(spec) - spec.spare_tokens}"
        )
    if spec.device.type == "cpu":
        refuse_speculation(config.speculation, where="generator=vllm on a CPU")
        if config.compilation is Compilation.graphs:
            raise ValueError("generator.compilation must be eager or inductor on a CPU, got graphs")
        if config.weights is Weights.sleep:
            raise ValueError("generator.weights must be shared or separate on a CPU, got sleep")
        if config.release_kv_cache:
            raise ValueError("generator.release_kv_cache must be false on a CPU, got true")


def check_support(config: VLLMGeneratorConfig, spec: EngineSpec, support: Support) -> None:
    """Refuse what the installed vLLM cannot do and no plain path can replace."""
    if config.release_kv_cache and (why_not := support.why_not(Feature.kv_release)):
        raise ValueError(f"generator.release_kv_cache must be false without {why_not}, got true")
    if spec.team is not None and (why_not := support.why_not(Feature.team)):
        rule = f"1 without {why_not}"
        raise ValueError(f"generator.tensor_parallel must be {rule}, got {spec.team.size}")
