"""The plan of a configuration: what it demands, and what it gets changed to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from rlkit.config import Config
from rlkit.generation import GeneratorConfig, HFGeneratorConfig, VLLMGeneratorConfig
from rlkit.generation.vllm.config import (
    Compilation,
    KVCacheDType,
    Quantization,
    Weights,
    slot_rank,
)
from rlkit.models.config import Switch, TuningKind
from rlkit.models.load import resolve_dtype
from rlkit.models.quantize import saved_quantization
from rlkit.models.source import architecture_of
from rlkit.plan.choose import Plan, make_plan
from rlkit.plan.device import available_bytes
from rlkit.plan.parts import Choice, Request
from rlkit.plan.work import Sampler, Work
from rlkit.training.divergence import EvalKL
from rlkit.types import Algorithm, Column

Say = Callable[[str], None]
_SAMPLERS = {
    Weights.auto: Sampler.vllm,
    Weights.shared: Sampler.vllm,
    Weights.separate: Sampler.vllm_separate,
    Weights.sleep: Sampler.vllm_sleep,
}
_GRAPHS = {
    Compilation.auto: Switch.auto,
    Compilation.eager: Switch.off,
    Compilation.graphs: Switch.on,
    Compilation.inductor: Switch.on,
}
_MOST_SEQS = 256
"""Completions that vLLM decodes at once unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan with what it was made for."""

    work: Work
    plan: Plan
    config: Config
    """What the run is loaded with: the user's, asking for exactly what the plan gives. The user's
    own stays as it is: a run resumed on another card is still the same run."""


def planned(
    config: Config,
    algorithm: Algorithm,
    *,
    device: torch.device,
    budget: int | None,
    say: Say,
    before: Choice | None = None,
) -> Planned:
    """The plan of `config` on `device`; raises DoesNotFit, with one line.

    `budget` None: `memory.budget`, at most what is free. `before` as in `make_plan`. Raises
    ValueError when the model's context or vLLM's adapter slots are too small for the run.
    """
    dtype, _ = resolve_dtype(config.model.dtype, device)
    hf_config = architecture_of(config.model, say=say)
    _check(config, hf_config)
    work = work_of(config, algorithm, hf_config, dtype, on_cuda=device.type == "cuda")
    if budget is None:
        budget = min(config.memory.budget_bytes or sys.maxsize, available_bytes(device))
    plan = make_plan(work, request_of(config, work), budget=budget, before=before)
    return Planned(work=work, plan=plan, config=with_plan(config, plan))


def _check(config: Config, hf_config: PreTrainedConfig) -> None:
    """What memory cannot help; said here, before anything is loaded or quantised."""
    context = int(hf_config.max_position_embeddings)
    longest = config.task.max_prompt_length + config.task.max_completion_length
    if longest > context:
        raise ValueError(
            f"task.max_prompt_length + task.max_completion_length must be <= {context}, the "
            f"model's context, got {longest}"
        )
    trains_all = config.model.tuning is TuningKind.full
    if trains_all and saved_quantization(hf_config) is not None:
        raise ValueError(
            "model.source must hold weights of 16 or 32 bits with model.tuning=full, got quantised "
            f"ones: {config.model.source}"
        )
    if isinstance(config.generator, VLLMGeneratorConfig) and not trains_all:
        slot_rank(config.model.lora.rank)


def _needs_reference(config: Config, algorithm: Algorithm) -> bool:
    """Whether the loss, a reward or the evaluation asks for the reference policy."""
    in_loss = Column.ref_logps in algorithm.needs or algorithm.outputs.full_kl is not None
    return in_loss or config.evaluation.kl is not EvalKL.none


def work_of(
    config: Config,
    algorithm: Algorithm,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    on_cuda: bool,
) -> Work:
    """What one step of `config` demands at most."""
    generator, task = config.generator, config.task
    return Work(
        hf_config=hf_config,
        dtype=dtype,
        quant=config.memory.quant,
        lora=config.model.lora,
        optim=config.optim.kind,
        sampler=_sampler(generator),
        releases_kv=isinstance(generator, VLLMGeneratorConfig) and generator.release_kv_cache,
        kv_value_bytes=_kv_value_bytes(generator, dtype),
        engine_in_nf4=_in_nf4(generator),
        num_prompts=config.prompts_per_step,
        group_size=config.algorithm.group_size,
        max_prompt=task.max_prompt_length,
        max_completion=task.max_completion_length,
        max_at_once=_at_once(generator, task.max_prompt_length + task.max_completion_length),
        rows_per_unit=algorithm.rows_per_unit,
        critic=algorithm.outputs.values,
        full_kl=algorithm.outputs.full_kl is not None,
        on_cuda=on_cuda,
        tuning=config.model.tuning,
        holds_reference=_needs_reference(config, algorithm),
    )


def request_of(config: Config, work: Work) -> Request:
    """What `config` leaves to the plan."""
    generator = config.generator
    of_engine = generator if isinstance(generator, VLLMGeneratorConfig) else None
    return Request(
        tokens_per_microbatch=config.memory.tokens_per_microbatch,
        checkpointing=config.model.gradient_checkpointing,
        kv_cache_bytes=of_engine.kv_cache_bytes if of_engine else 0,
        engine_tokens=of_engine.max_num_batched_tokens if of_engine else 0,
        graphs=_GRAPHS[of_engine.compilation] if of_engine else Switch.auto,
    )


def with_plan(config: Config, plan: Plan) -> Config:
    """A copy of `config` that asks for exactly what `plan` gives."""
    choice, generator = plan.choice, config.generator
    if isinstance(generator, VLLMGeneratorConfig):
        generator = replace(
            generator,
            kv_cache_bytes=plan.kv_cache_bytes,
            max_num_seqs=generator.max_num_seqs or choice.at_once,
            max_num_batched_tokens=choice.engine_tokens,
            compilation=_compilation(generator.compilation, choice),
        )
    elif isinstance(generator, HFGeneratorConfig):
        generator = replace(generator, max_rows=min(generator.max_rows, choice.at_once))
    return replace(
        config,
        generator=generator,
        model=replace(config.model, gradient_checkpointing=choice.checkpointing),
        memory=replace(
            config.memory,
            tokens_per_microbatch=min(
                config.memory.tokens_per_microbatch, choice.tokens_per_microbatch
            ),
        ),
    )


def _compilation(wanted: Compilation, choice: Choice) -> Compilation:
    """`auto` stays where the plan has room for graphs, or none are made anyway."""
    if wanted is Compilation.auto and not choice.graphs:
        return Compilation.eager
    return wanted


def _in_nf4(generator: GeneratorConfig) -> bool:
    """Whether vLLM has NF4 weights of its own."""
    if not isinstance(generator, VLLMGeneratorConfig):
        return False
    return generator.quantization is Quantization.nf4


def _sampler(generator: GeneratorConfig) -> Sampler:
    if isinstance(generator, VLLMGeneratorConfig):
        if generator.weights is Weights.auto and _in_nf4(generator):
            return Sampler.vllm_separate
        return _SAMPLERS[generator.weights]
    return Sampler.hf if isinstance(generator, HFGeneratorConfig) else Sampler.elsewhere


def _kv_value_bytes(generator: GeneratorConfig, dtype: torch.dtype) -> int:
    if isinstance(generator, VLLMGeneratorConfig):
        return dtype.itemsize if generator.kv_cache_dtype is KVCacheDType.auto else 1
    return dtype.itemsize


def _at_once(generator: GeneratorConfig, row_tokens: int) -> int:
    if isinstance(generator, HFGeneratorConfig):
        return max(1, min(generator.max_rows, generator.max_tokens // row_tokens))
    if isinstance(generator, VLLMGeneratorConfig):
        return generator.max_num_seqs or _MOST_SEQS
    return 1
