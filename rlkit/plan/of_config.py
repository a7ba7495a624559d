"""This module plans a configuration: what it demands, and what it gets changed to."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from rlkit.config import Config
from rlkit.generation.demand import EngineChoice
from rlkit.models.config import AdapterUse, Switch, TuningKind
from rlkit.models.quantize import saved_quantization
from rlkit.models.resolved import ResolvedModel
from rlkit.models.rope import check_lengths
from rlkit.plan.choose import Plan, make_plan
from rlkit.plan.device import available_bytes
from rlkit.plan.parts import Choice, Request, parts_of
from rlkit.plan.work import Work
from rlkit.reward_models.size import device_bytes
from rlkit.training.divergence import EvalKL
from rlkit.types import Algorithm, Column

_GRAPHS = {None: Switch.auto, False: Switch.off, True: Switch.on}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """This record is a plan with what it was made for."""

    work: Work
    plan: Plan
    config: Config
    """The run is loaded with this: the user's, asking for exactly what the plan gives. The user's
    own stays as it is: a run resumed on another card is still the same run."""


def planned(
    config: Config,
    algorithm: Algorithm,
    *,
    model: ResolvedModel,
    budget: int | None,
    before: Choice | None = None,
    longest_prompt: int | None = None,
) -> Planned:
    """Return the plan of `config` with `model`, on the device of that.

    Args:
        config: The user's configuration.
        algorithm: The algorithm that it describes.
        model: What `config.model` was resolved to; its options are those that count.
        budget: Bytes; None is `memory.budget`, at most what is free.
        before: As in `make_plan`.
        longest_prompt: As in `Work`, tokens.

    Returns:
        The work, its plan, and the configuration to load.

    Raises:
        DoesNotFit: The run does not fit, said in one line.
        ValueError: The model's context or vLLM's adapter slots are too small for the run.
    """
    config, device = replace(config, model=model.config), model.device
    _check(config, model.hf_config)
    on_cuda = device.type == "cuda"
    work = work_of(config, algorithm, model.hf_config, model.dtype, on_cuda=on_cuda)
    scorers = device_bytes(
        config.reward.functions,
        device,
        on_base=work.prefill_bytes,
        itemsize=model.dtype.itemsize,
    )
    work = replace(work, longest_prompt=longest_prompt, scorers=scorers)
    if budget is None:
        budget = budget_of(config, device)
    plan = make_plan(work, request_of(config, work), budget=budget, before=before)
    return Planned(work=work, plan=plan, config=with_plan(config, plan))


def budget_of(config: Config, device: torch.device) -> int:
    """Return the bytes that a run may take: `memory.budget`, at most what is free."""
    return min(config.memory.budget_bytes or sys.maxsize, available_bytes(device))


def peak_with(made: Planned, *, sampled_tokens: int) -> int:
    """Return the peak bytes of the plan when a step's completions have so many tokens in all."""
    work = replace(made.work, sampled_tokens=sampled_tokens)
    parts = parts_of(work, request_of(made.config, work), made.plan.choice)
    return max(sum(p.sampling for p in parts), sum(p.training for p in parts))


def _check(config: Config, hf_config: PreTrainedConfig) -> None:
    """Refuse what memory cannot help, before anything is loaded or quantised."""
    context = int(hf_config.max_position_embeddings)
    longest = config.task.max_prompt_length + config.task.max_completion_length
    if longest > context:
        raise ValueError(
            f"task.max_prompt_length + task.max_completion_length must be <= {context}, the "
            f"model's context, got {longest}"
        )
    if config.model.rope_length is None:
        check_lengths(hf_config, longest)
    trains_all = config.model.tuning is TuningKind.full
    if trains_all and saved_quantization(hf_config) is not None:
        raise ValueError(
            "model.source must hold weights of 16 or 32 bits with model.tuning=full, got quantised "
            f"ones: {config.model.source}"
        )
    if not trains_all:
        config.generator.check_adapter_rank(config.model.lora.rank)


def _needs_reference(config: Config, algorithm: Algorithm) -> bool:
    """Return whether the loss, a reward or the evaluation asks for the reference policy."""
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
    """Return what one step of `config` demands at most.

    Args:
        config: The configuration, with the shape of its adapter.
        algorithm: The algorithm that it describes.
        hf_config: The architecture of the model.
        dtype: The type that the policy computes in.
        on_cuda: Whether the policy lives on a CUDA device.

    Returns:
        The demands, before anything is loaded.
    """
    task = config.task
    row_tokens = task.max_prompt_length + task.max_completion_length
    demand = config.generator.demand(row_tokens=row_tokens)
    return Work(
        hf_config=hf_config,
        dtype=dtype,
        quant=config.memory.quant,
        lora=config.model.lora,
        optim=config.optim.kind,
        sampler=demand.sampler,
        releases_kv=demand.releases_kv,
        kv_value_bytes=demand.kv_value_bytes or dtype.itemsize,
        engine_in_nf4=demand.in_nf4,
        engine_parts=demand.parts,
        num_prompts=config.prompts_per_rank,
        ranks=config.gpus,
        is_sharded=config.memory.is_sharded,
        group_size=config.algorithm.group_size,
        max_prompt=task.max_prompt_length,
        max_completion=task.max_completion_length,
        max_at_once=demand.max_at_once,
        rows_per_unit=algorithm.rows_per_unit,
        critic=algorithm.outputs.values,
        full_kl=algorithm.outputs.full_kl is not None,
        on_cuda=on_cuda,
        tuning=config.model.tuning,
        holds_reference=_needs_reference(config, algorithm),
        keeps_first_adapter=(
            config.model.adapter is not None and config.model.adapter_use is AdapterUse.train
        ),
        shares_prompts=config.model.shared_prefix is not Switch.off,
        eval_prompts=0 if config.evaluation.kl is EvalKL.none else config.evaluation.num_prompts,
        eval_samples=config.evaluation.samples_per_prompt,
        spare_tokens=demand.spare_tokens,
    )


def request_of(config: Config, work: Work) -> Request:
    """Return what `config` leaves to the plan."""
    demand = config.generator.demand(row_tokens=work.max_prompt + work.max_completion)
    return Request(
        tokens_per_microbatch=config.memory.tokens_per_microbatch,
        checkpointing=config.model.gradient_checkpointing,
        kv_cache_bytes=demand.kv_cache_bytes,
        engine_tokens=demand.engine_tokens,
        graphs=_GRAPHS[demand.graphs],
    )


def with_plan(config: Config, plan: Plan) -> Config:
    """Return a copy of `config` that asks for exactly what `plan` gives."""
    choice, bound = plan.choice, config.memory.tokens_per_microbatch
    engine = EngineChoice(
        kv_cache_bytes=plan.kv_cache_bytes,
        at_once=choice.at_once,
        engine_tokens=choice.engine_tokens,
        graphs=choice.graphs,
    )
    return replace(
        config,
        generator=config.generator.with_choice(engine),
        model=replace(config.model, gradient_checkpointing=choice.checkpointing),
        memory=replace(
            config.memory,
            tokens_per_microbatch=choice.tokens_per_microbatch
            if bound is None
            else min(bound, choice.tokens_per_microbatch),
        ),
    )
