"""vLLM in the trainer's process: start, limits, clean end. Nothing else builds an engine."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from rlkit.generation.vllm import choice, life, products
from rlkit.generation.vllm.accel.draft_graphs import draft_sizes
from rlkit.generation.vllm.compat import repacked
from rlkit.generation.vllm.compat.check import Support, look_up
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.compat.pools import abandon_pools
from rlkit.generation.vllm.compat.rendezvous import meets
from rlkit.generation.vllm.config import (
    Compilation,
    VLLMGeneratorConfig,
    Weights,
    resolve_compilation,
    slot_rank,
)
from rlkit.generation.vllm.guard import (
    configure_environment,
    log_written,
    output_captured,
    process_state_kept,
)
from rlkit.generation.vllm.memory import Budget, gib
from rlkit.generation.vllm.package import use_architecture, version
from rlkit.generation.vllm.refusals import check_options, check_support
from rlkit.generation.vllm.sampling_options import require_vllm
from rlkit.generation.vllm.sizes import block_size, engine_budget, max_model_len, memory_share
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.runtime.say import Say

if TYPE_CHECKING:
    from rlkit.generation.vllm.accel.burst import Decoder


_log = logging.getLogger(__name__)
_MOST_BATCHED_TOKENS = {"cuda": 8192, "cpu": 2048}
_UNSPLIT_TOKENS = 2048
"""Rows up to here are read by one program of FlashAttention a head: parts of a row would have to be
written in float32 and combined by a second kernel, 3 of 15 us a layer on an H200."""
_REFUSALS = (ValueError, RuntimeError, NotImplementedError, MemoryError, AssertionError)
_STREAM_INTERVAL = 16
"""Tokens between two looks at a completion; one look costs as much as scheduling it."""


@dataclass(slots=True, kw_only=True)
class Engine:
    """This is a running vLLM; `close` ends it."""

    llm: Any
    """`vllm.LLM`; None after `close`."""
    max_model_len: int
    weights: Weights
    """`shared`, `separate` or `sleep`, never `auto`."""
    release_kv_cache: bool
    summary: str
    """One line: version, sizes, seconds."""
    start_log: str
    """What vLLM wrote while it started."""
    decoder: Decoder | None
    """Decodes past vLLM's scheduler; None = vLLM's own loop does it all."""
    past_output_processor: bool
    """Whether requests may go past vLLM's output processor (`loop.through_core`)."""
    unshareable: str
    """Why nobody else can hold or replace the engine's weights; empty when somebody can."""
    asleep: tuple[str, ...] = ()
    """vLLM's tags of the memory that is given back until the next call."""
    call_numbers: itertools.count[int] = field(default_factory=itertools.count)
    """Of calls, whoever makes them."""

    def close(self) -> None:
        """End the engine and free its memory; idempotent."""
        llm, self.llm, self.decoder = self.llm, None, None
        if llm is None:
            return
        try:
            with process_state_kept():
                life.end(llm)
            life.clean_up()
        except Exception as error:  # an engine that broke may not end well, and must not say more
            _log.warning("vLLM did not end cleanly: %s", life.reason(error))
        if self.release_kv_cache or self.weights is Weights.sleep:
            abandon_pools(self.asleep)


def start_engine(config: VLLMGeneratorConfig, spec: EngineSpec, *, say: Say) -> Engine:
    """Start vLLM for `spec`; raises ValueError with one line when it cannot work.

    Its own output is kept out of the terminal; it goes to the log, and to `say` when it fails.
    """
    require_vllm()
    if config.speculation.is_on:
        spec = replace(spec, spare_tokens=config.speculation.tokens)
    check_options(config, spec)
    budget, support = engine_budget(config, spec), look_up(version())
    check_support(config, spec, support)
    started = time.monotonic()
    say(f"starting vLLM {version()}: {gib(budget.kv_cache_bytes)} for keys and values ...")
    configure_environment()
    life.collect_garbage()
    life.leave_groups_at_exit()
    has_groups, told = torch.distributed.is_initialized(), ""
    with process_state_kept(), output_captured() as output, log_written(), life.faster_start():
        try:
            with meets(spec.team):
                llm, problem = _build(config, spec, budget, support), ""
            if spec.lora_rank:
                told = products.describe(llm, config, support)
        except _REFUSALS as error:
            llm, problem = None, life.reason(error)
    if llm is None:
        if not has_groups:
            life.leave_groups()
        say(output[0])
        raise ValueError(f"generator=vllm must be able to run {spec.location}, got: {problem}")
    if spec.device.type == "cuda":
        # vLLM has moved this thread to a stream of its own: what was loaded must be there.
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    found = choice.choose(llm, config, support, on_cpu=spec.device.type == "cpu")
    engine = Engine(
        llm=llm,
        max_model_len=max_model_len(spec) - spec.spare_tokens,
        weights=resolve_weights(config),
        release_kv_cache=config.release_kv_cache,
        start_log=output[0],
        decoder=found.decoder,
        past_output_processor=found.past_output_processor,
        unshareable=_why_unshareable(llm, support),
        summary="",
    )
    engine.summary = (
        f"generator: vLLM {version()} in process, started in {seconds:.1f} s; "
        f"{gib(budget.kv_cache_bytes)} for keys and values, {budget.max_num_seqs} completions "
        f"at once, weights {engine.weights.value}{_team(spec)}{told}{found.told}"
    )
    say(features_line(version(), _lacking(engine, found, config, spec, support)))
    return engine


def resolve_weights(config: VLLMGeneratorConfig) -> Weights:
    """Put what it stands for in place of `auto`: a part of the weights cannot be shared."""
    if config.weights is not Weights.auto:
        return config.weights
    return Weights.shared if config.tensor_parallel == 1 else Weights.separate


def _build(config: VLLMGeneratorConfig, spec: EngineSpec, budget: Budget, support: Support) -> Any:
    import vllm

    on_cpu = spec.device.type == "cpu"
    sleeps = config.release_kv_cache or config.weights is Weights.sleep
    if not on_cpu:
        life.start_afresh()
    use_architecture(vllm, spec.hf_config)
    if on_cpu:
        from rlkit.generation.vllm.compat.cpu import prepare_cpu

        prepare_cpu()
    return vllm.LLM(
        model=spec.location,
        revision=spec.revision,
        trust_remote_code=spec.allow_remote_code,
        skip_tokenizer_init=False,
        dtype=str(spec.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        seed=0,
        max_model_len=max_model_len(spec),
        max_num_seqs=budget.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens
        or _MOST_BATCHED_TOKENS[spec.device.type],
        kv_cache_memory_bytes=budget.kv_cache_bytes,
        gpu_memory_utilization=memory_share(spec, budget),
        kv_cache_dtype=config.kv_cache_dtype.value,
        enable_prefix_caching=True,
        enforce_eager=resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.eager,
        logprobs_mode="processed_logprobs",
        stream_interval=_STREAM_INTERVAL,
        enable_sleep_mode=sleeps,
        worker_extension_cls="rlkit.generation.vllm.worker.WorkerExtension",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **_options(config, spec, budget, support),
    )


def _options(
    config: VLLMGeneratorConfig, spec: EngineSpec, budget: Budget, support: Support
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` that only some engines have."""
    on_cpu = spec.device.type == "cpu"
    options: dict[str, Any] = {} if spec.team is None else spec.team.options()
    if spec.four_bit:
        from rlkit.generation.vllm import nf4

        options |= {"quantization": nf4.NAME, "load_format": nf4.NAME}
    if spec.in_fp8:
        from rlkit.generation.vllm import fp8

        options |= {"quantization": fp8.NAME, "load_format": fp8.NAME}
        options["hf_overrides"] = {"quantization_config": fp8.config_of(spec.in_fp8)}
    if tokens := block_size(config, spec):
        options["block_size"] = tokens
    if spec.lora_rank:
        options |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": slot_rank(spec.lora_rank),
            "lora_target_modules": list(spec.lora_modules),
        }
        options |= products.worker_option(config, support, on_cpu=on_cpu)
    if resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.graphs:
        # 0: no torch.compile. Without it vLLM 0.24 can capture whole decoding steps only.
        sizes = life.capture_sizes(budget.max_num_seqs)
        if (guesses := config.speculation).is_on:
            # Attention plans for graphs up to the largest size; vLLM's own have a token a row.
            sizes += draft_sizes(guesses.tokens + 1, guesses.rows, budget.max_num_seqs)
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sorted({*sizes}),
        }
        if max_model_len(spec) <= _UNSPLIT_TOKENS:
            options["attention_config"] = {"flash_attn_max_num_splits_for_cuda_graph": 1}
    return options


def _lacking(
    engine: Engine,
    found: choice.LoopChoice,
    config: VLLMGeneratorConfig,
    spec: EngineSpec,
    support: Support,
) -> dict[Feature, str]:
    """Say for each feature that concerns `engine` what it needs and does not have."""
    lacking = {
        Feature.views: engine.unshareable if spec.team is None else "generator.tensor_parallel=1",
        Feature.core_loop: "" if found.past_output_processor else found.no_bursts,
        Feature.bursts: found.no_bursts,
    }
    if spec.lora_rank:
        lacking[Feature.in_place] = support.why_not(Feature.in_place)
        lacking[Feature.dense] = products.why_punica(engine.llm, config, support)
    if spec.device.type == "cpu":
        lacking[Feature.cpu] = support.why_not(Feature.cpu)
    return lacking


def _team(spec: EngineSpec) -> str:
    return "" if spec.team is None else f", one engine of {spec.team.size} ranks"


def features_line(version: str, lacking: Mapping[Feature, str]) -> str:
    """Say which features are on, and for those that are off what they need; one line."""
    on = ", ".join(feature.value for feature, need in lacking.items() if not need) or "none"
    off = ", ".join(f"{feature.value} ({need})" for feature, need in lacking.items() if need)
    return f"vLLM {version}: on are {on}" + (f"; off are {off}" if off else "")


def _why_unshareable(llm: Any, support: Support) -> str:
    if why_not := support.why_not(Feature.views):
        return f"sharing weights needs {why_not}"
    return repacked.describe(llm.collective_rpc("rlkit_repacked")[0])
