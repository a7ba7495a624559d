"""This module chooses the generator of a run, and loads engine and model in the right order.

With shared weights the engine comes first: the trainer's frozen parameters are views of vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlkit.assembly.team import team_of
from rlkit.config import Config, ConfigError
from rlkit.generation import (
    AutoGeneratorConfig,
    GeneratorConfig,
    HFGeneratorConfig,
    SamplingOptions,
    VLLMGeneratorConfig,
    VLLMServerConfig,
)
from rlkit.generation.vllm.config import (
    Quantization,
    VLLMSamplingOptions,
    Weights,
    is_installed,
)
from rlkit.models.config import QuantConfig, QuantKind, TuningKind
from rlkit.models.load import BaseModel, load_resolved
from rlkit.models.nf4_folder import in_nf4
from rlkit.models.quantize import fp8_layers, meta_model, require_bitsandbytes
from rlkit.models.resolved import ResolvedModel, with_merged_adapter
from rlkit.models.views import CannotShare
from rlkit.plan.of_config import Planned
from rlkit.plan.run import plan_run
from rlkit.policy.lora import target_layers
from rlkit.ranks import ALONE, Ranks
from rlkit.runtime.say import Say
from rlkit.types import Algorithm

if TYPE_CHECKING:
    from rlkit.generation.vllm.engine import Engine
    from rlkit.generation.vllm.spec import EngineSpec
    from rlkit.generation.vllm.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModels:
    """This record holds the base model, and the engine that samples if that is not transformers."""

    base: BaseModel
    engine: Engine | None
    sampled: BaseModel | None = None
    """The model that the engine samples from, on the engine's weights, where it is not the
    trainer's (4-bit rollouts): what the engine is checked against."""


def choose_generator(config: Config, device: torch.device, *, say: Say) -> GeneratorConfig:
    """Return `config.generator`, with `auto` replaced by what it means on `device`."""
    chosen = config.generator
    if not isinstance(chosen, AutoGeneratorConfig):
        return chosen
    if device.type == "cuda" and is_installed():
        say("generator: vllm (auto: a CUDA device, and vLLM is installed)")
        return VLLMGeneratorConfig(
            sampling=_with_extra(chosen.sampling),
            rounds_at_once=chosen.rounds_at_once,
            tensor_parallel=config.gpus if config.memory.is_sharded else 1,
            speculation=chosen.speculation,
        )
    reason = f"the device is {device.type}" if device.type != "cuda" else "vLLM is not installed"
    say(f"generator: hf (auto: {reason})")
    return HFGeneratorConfig(
        sampling=chosen.sampling,
        rounds_at_once=chosen.rounds_at_once,
        speculation=chosen.speculation,
    )


def plan_and_load(
    config: Config,
    algorithm: Algorithm,
    *,
    model: ResolvedModel,
    longest: tuple[int, int],
    say: Say,
    longest_prompt: int | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Planned, LoadedModels]:
    """Return the memory plan and what is loaded by it.

    Sometimes vLLM's weights cannot be the trainer's. Then `generator.weights=auto` is planned and
    loaded again with two copies: on CUDA vLLM's sleep while the trainer computes.

    Args:
        config: The run's configuration.
        algorithm: It says what the plan must hold, such as a critic.
        model: What `config.model` was resolved to.
        longest: Most tokens of a prompt and of a completion.
        say: It takes a line before each slow step.
        longest_prompt: Tokens of the longest prompt that is expected, where that is known.
        ranks: The ranks of the run, which share one plan.

    Returns:
        The plan, and the base model with its engine.

    Raises:
        ValueError: The run does not fit or cannot be loaded, with one line.
    """
    plan = partial(plan_run, model=model, longest_prompt=longest_prompt, say=say, ranks=ranks)
    made = plan(config, algorithm)
    model = with_merged_adapter(model, say=say)
    try:
        return made, load_base(made.config, model=model, longest=longest, say=say, ranks=ranks)
    except CannotShare as error:
        generator = config.generator
        if not isinstance(generator, VLLMGeneratorConfig) or generator.weights is not Weights.auto:
            raise ValueError(f"{error}; set generator.weights=separate") from error
        apart = Weights.sleep if model.device.type == "cuda" else Weights.separate
        say(f"generator.weights: {apart.value} (auto: {error})")
    # Not above: while the exception lives, its frames hold what the first engine held.
    config = replace(config, generator=replace(generator, weights=apart))
    made = plan(config, algorithm)
    return made, load_base(made.config, model=model, longest=longest, say=say, ranks=ranks)


def load_base(
    config: Config,
    *,
    model: ResolvedModel,
    longest: tuple[int, int],
    say: Say,
    ranks: Ranks = ALONE,
) -> LoadedModels:
    """Load the model, after the engine whose weights it shares if the generator is vLLM.

    Args:
        config: The run's configuration, as planned.
        model: What its model was resolved to, with its adapter merged where that is asked for.
        longest: Most tokens of a prompt and of a completion.
        say: It takes a line before each slow step.
        ranks: The ranks of the run, of which some may be one engine.

    Returns:
        The base model with its engine.

    Raises:
        ValueError: The model or its engine cannot be loaded, with one line.
    """
    if isinstance(config.generator, VLLMServerConfig):
        from rlkit.generation.vllm.server_check import check_server

        name, context = check_server(config.generator)
        if sum(longest) > context:
            raise ConfigError(
                f"task.max_prompt_length + task.max_completion_length must be <= {context}, "
                f"--max-model-len of the server, got {sum(longest)}"
            )
        say(f"generator: vllm_server, {name} at {config.generator.url}")
    model = replace(model, config=config.model)
    if isinstance(config.generator, VLLMGeneratorConfig):
        spec = partial(_engine_spec, config, longest, team_of(config, ranks))
        return _with_engine(config, config.generator, model, spec, ranks, say=say)
    base = _load_trained(config, model, None, ranks, say=say)
    return LoadedModels(base=base, engine=None)


def _with_engine(
    config: Config,
    generator: VLLMGeneratorConfig,
    model: ResolvedModel,
    spec_of: Callable[[ResolvedModel], EngineSpec],
    ranks: Ranks,
    *,
    say: Say,
) -> LoadedModels:
    from rlkit.generation.vllm.engine import start_engine
    from rlkit.generation.vllm.weights import weight_views

    trained = sampled = _in_nf4(model, config.memory.quant, say=say)
    if generator.quantization is Quantization.nf4:
        quant = QuantConfig(kind=QuantKind.nf4, double_quant=config.memory.quant.double_quant)
        sampled = trained if quant == config.memory.quant else _in_nf4(model, quant, say=say)
    is_apart = sampled.location != trained.location
    if is_apart and generator.weights is Weights.auto:
        generator = replace(generator, weights=Weights.separate)
    engine = start_engine(generator, spec_of(sampled), say=say)
    try:
        say(engine.summary)
        is_shared = engine.weights is Weights.shared
        if engine.unshareable and is_shared:
            raise CannotShare(engine.unshareable)
        if engine.unshareable and (is_apart or config.model.tuning is TuningKind.full):
            raise ValueError(f"{engine.unshareable}; set generator=hf")
        views = weight_views(engine.llm) if is_shared or is_apart else None
        shared = views if is_shared else None
        base = _load_trained(config, trained, shared, ranks, say=say)
        probe = load_resolved(sampled, say=say, weights=views) if is_apart else None
    except BaseException:
        engine.close()
        raise
    # An adapter belongs to the model that was asked for, not to a folder in the cache.
    base = replace(base, location=model.location)
    return LoadedModels(base=base, engine=engine, sampled=probe)


def _load_trained(
    config: Config,
    model: ResolvedModel,
    weights: Mapping[str, Tensor] | None,
    ranks: Ranks,
    *,
    say: Say,
) -> BaseModel:
    """Load the model that trains, or this rank's part of it."""
    quant = config.memory.quant
    if not config.memory.is_sharded or ranks.size == 1:
        return load_resolved(model, say=say, quant=quant, weights=weights)
    mesh, found = ranks.mesh(), list[BaseModel]()
    for turn in range(ranks.size):
        # One after the other: the host's memory holds one whole model, not one for each rank.
        def load(turn: int = turn) -> None:
            if turn == ranks.rank:
                found.append(load_resolved(model, say=say, quant=quant, mesh=mesh))

        ranks.together(load)
    return found[0]


def _in_nf4(model: ResolvedModel, quant: QuantConfig, *, say: Say) -> ResolvedModel:
    if quant.kind is not QuantKind.nf4:
        return model
    require_bitsandbytes()
    return in_nf4(model, quant, say=say)


def _engine_spec(
    config: Config, longest: tuple[int, int], team: Team | None, model: ResolvedModel
) -> EngineSpec:
    from rlkit.generation.vllm.spec import EngineSpec

    slot = _adapter_slot(model)
    max_prompt_length, max_completion_length = longest
    return EngineSpec(
        location=model.location,
        revision=model.revision,
        hf_config=model.hf_config,
        dtype=model.dtype,
        device=model.device,
        max_prompt_length=max_prompt_length,
        max_completion_length=max_completion_length,
        rows=config.prompts_per_rank
        * config.algorithm.group_size
        * config.generator.ranks_together,
        lora_rank=slot.rank,
        lora_modules=slot.modules,
        allow_remote_code=model.config.allow_remote_code,
        team=team,
        in_fp8=fp8_layers(config.memory.quant, model.hf_config),
    )


class _AdapterSlot(NamedTuple):
    """This record holds what an engine sets aside for an adapter."""

    rank: int
    """0 = nothing."""
    modules: tuple[str, ...]


def _adapter_slot(model: ResolvedModel) -> _AdapterSlot:
    config = model.config
    if config.tuning is TuningKind.full:
        return _AdapterSlot(0, ())
    layers = target_layers(meta_model(model.hf_config), config.lora)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return _AdapterSlot(config.lora.rank, tuple(leaves))


def _with_extra(sampling: SamplingOptions) -> VLLMSamplingOptions:
    return VLLMSamplingOptions(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop=sampling.stop,
    )
