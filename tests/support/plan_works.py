"""Works of the memory plan on shapes of real models, without weights."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING

from benchmarks.random_model import SHAPES
from rlkit.generation.demand import Sampler
from rlkit.models.config import LoRAConfig, QuantConfig
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind


def step_work(
    shape: str,
    prompts: int,
    samples: int,
    new_tokens: int,
    *,
    on_cuda: bool = True,
    sampler: Sampler = Sampler.vllm,
    max_prompt: int = 128,
) -> Work:
    """Return a step of LoRA on 16-bit weights; an engine keeps its cache while training.

    Args:
        shape: A key of `benchmarks.random_model.SHAPES`.
        prompts: Prompts of a step.
        samples: Completions of each.
        new_tokens: Tokens of each completion.
        on_cuda: Whether it runs on a card.
        sampler: Who samples.
        max_prompt: Tokens of the longest prompt.

    Returns:
        The work.
    """
    values = dict(SHAPES[shape])
    return Work(
        hf_config=CONFIG_MAPPING[values.pop("model_type")](**values),
        dtype=torch.bfloat16,
        quant=QuantConfig(),
        lora=LoRAConfig(),
        optim=OptimKind.adamw,
        sampler=sampler,
        releases_kv=False,
        kv_value_bytes=2,
        num_prompts=prompts,
        group_size=samples,
        max_prompt=max_prompt,
        max_completion=new_tokens,
        max_at_once=1024,
        rows_per_unit=1,
        critic=False,
        full_kl=False,
        on_cuda=on_cuda,
    )
