"""When the plan lets decoder layers run twice: only where their activations do not fit."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING

from benchmarks.random_model import SHAPES
from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, LoRAConfig, QuantConfig
from rlkit.plan.choose import make_plan
from rlkit.plan.parts import GB, Choice, Request
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind


def choice(budget: int, *, on_cuda: bool) -> Choice:
    """Of 8 x 8 completions of 128 + 512 tokens on the 1.5B shape."""
    shape = dict(SHAPES["qwen2.5-1.5b"])
    work = Work(
        hf_config=CONFIG_MAPPING[shape.pop("model_type")](**shape),
        dtype=torch.bfloat16,
        quant=QuantConfig(),
        lora=LoRAConfig(),
        optim=OptimKind.adamw,
        sampler=Sampler.hf,
        releases_kv=False,
        kv_value_bytes=2,
        num_prompts=8,
        group_size=8,
        max_prompt=128,
        max_completion=512,
        max_at_once=8,
        rows_per_unit=1,
        critic=False,
        full_kl=False,
        on_cuda=on_cuda,
    )
    request = Request(
        tokens_per_microbatch=8192, checkpointing=Checkpointing.auto, kv_cache_bytes=0
    )
    return make_plan(work, request, budget=budget).choice


def test_activations_are_kept_where_a_busy_micro_batch_fits() -> None:
    found = choice(80 * GB, on_cuda=True)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.off, 8192)
    found = choice(18 * GB, on_cuda=True)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.off, 4096)


def test_else_layers_run_twice_in_a_micro_batch_as_large_as_asked() -> None:
    found = choice(10 * GB, on_cuda=True)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.on, 8192)
