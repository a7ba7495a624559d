"""vLLM in the trainer's process: start, limits, clean end. Nothing else builds an engine."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from rlkit.generation.vllm import dense, life, loop
from rlkit.generation.vllm.burst import Decoder, find_decoder
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
from rlkit.generation.vllm.memory import (
    OVERHEAD_BYTES,
    Budget,
    Demand,
    cache_shape,
    gib,
    plan,
    weight_bytes,
)
from rlkit.generation.vllm.package import use_architecture, version
from rlkit.generation.vllm.sampling_options import require_vllm
from rlkit.runtime.say import Say

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CPU_BLOCK, _CUDA_BLOCK = 32, 16
_MOST_SEQS = {"cuda": 256, "cpu": 32}
_MOST_BATCHED_TOKENS = {"cuda": 8192, "cpu": 2048}
_REFUSALS = (ValueError, RuntimeError, NotImplementedError, MemoryError, AssertionError)
_STREAM_INTERVAL = 16
"""Tokens between two looks at a completion; one look costs as much as scheduling it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a run asks of its engine."""

    location: str
    """Folder or hub id of the base model."""
    revision: str | None
    hf_config: PreTrainedConfig
    dtype: torch.dtype
    device: torch.device
    max_prompt_length: int
    max_completion_length: int
    rows: int
    """Completions of one training step."""
    lora_rank: int
    """0 = an engine without adapters."""
    lora_modules: tuple[str, ...]
    """Last parts of the names of the adapted layers: q_proj, up_proj, ..."""
    allow_remote_code: bool = False

    @property
    def four_bit(self) -> bool:
        """Whether the folder holds bitsandbytes NF4, the one quantisation that rlkit loads."""
        return getattr(self.hf_config, "quantization_config", None) is not None


@dataclass(slots=True, kw_only=True)
class Engine:
    """A running vLLM; `close` ends it."""

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
    asleep: tuple[str, ...] = ()
    """vLLM's tags of the memory that is given back until the next call."""
    call_numbers: itertools.count[int] = field(default_factory=itertools.count)
    """Of calls, whoever makes them."""

    def close(self) -> None:
        """End the engine and free its memory; idempotent."""
        llm, self.llm, self.decoder = self.llm, None, None
        if llm is None:
            return
        with process_state_kept():
            life.end(llm)
        life.clean_up()
        if self.release_kv_cache or self.weights is Weights.sleep:
            life.abandon_pools(self.asleep)


def start_engine(config: VLLMGeneratorConfig, spec: EngineSpec, *, say: Say) -> Engine:
    """Start vLLM for `spec`; raises ValueError with one line when it cannot work.

    Its own output is kept out of the terminal; it goes to the log, and to `say` when it fails.
    """
    require_vllm()
    _check_options(config, spec)
    budget = _budget(config, spec)
    started = time.monotonic()
    say(f"starting vLLM {version()}: {gib(budget.kv_cache_bytes)} for keys and values ...")
    configure_environment()
    life.collect_garbage()
    life.leave_groups_at_exit()
    has_groups, products = torch.distributed.is_initialized(), ""
    with process_state_kept(), output_captured() as output, log_written(), life.faster_start():
        try:
            llm, problem = _build(config, spec, budget), ""
            if spec.lora_rank:
                products = dense.describe(llm, config)
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
    weights, found = resolve_weights(config.weights), find_decoder(llm, version())
    return Engine(
        llm=llm,
        max_model_len=max_model_len(spec),
        weights=weights,
        release_kv_cache=config.release_kv_cache,
        start_log=output[0],
        decoder=found if isinstance(found, Decoder) else None,
        summary=(
            f"generator: vLLM {version()} in process, started in {seconds:.1f} s; "
            f"{gib(budget.kv_cache_bytes)} for keys and values, {budget.max_num_seqs} completions "
            f"at once, weights {weights.value}{products}"
            f"{loop.describe(config, found, on_cpu=spec.device.type == 'cpu')}"
        ),
    )


def resolve_weights(wanted: Weights) -> Weights:
    """`auto` is `shared`."""
    return Weights.shared if wanted is Weights.auto else wanted


def max_model_len(spec: EngineSpec) -> int:
    """Tokens of the longest prompt and completion together."""
    return spec.max_prompt_length + spec.max_completion_length


def _build(config: VLLMGeneratorConfig, spec: EngineSpec, budget: Budget) -> Any:
    import vllm

    on_cpu = spec.device.type == "cpu"
    sleeps = config.release_kv_cache or config.weights is Weights.sleep
    if not on_cpu:
        life.start_afresh()
    use_architecture(vllm, spec.hf_config)
    if on_cpu:
        from rlkit.generation.vllm.cpu import prepare_cpu

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
        gpu_memory_utilization=_memory_share(spec, budget),
        kv_cache_dtype=config.kv_cache_dtype.value,
        enable_prefix_caching=True,
        enforce_eager=resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.eager,
        logprobs_mode="processed_logprobs",
        stream_interval=_STREAM_INTERVAL,
        enable_sleep_mode=sleeps,
        worker_extension_cls="rlkit.generation.vllm.worker.WorkerExtension",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **_options(config, spec, budget),
    )


def _options(config: VLLMGeneratorConfig, spec: EngineSpec, budget: Budget) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that only some engines have."""
    on_cpu = spec.device.type == "cpu"
    options: dict[str, Any] = {}
    if spec.four_bit:
        from rlkit.generation.vllm import nf4

        options |= {"quantization": nf4.NAME, "load_format": nf4.NAME}
    if block_size := _block_size(config, spec):
        options["block_size"] = block_size
    if spec.lora_rank:
        options |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": slot_rank(spec.lora_rank),
            "lora_target_modules": list(spec.lora_modules),
        }
        options |= dense.worker_option(config, on_cpu=on_cpu)
    if resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.graphs:
        # 0: no torch.compile. Without it vLLM 0.24 can capture whole decoding steps only.
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": life.capture_sizes(budget.max_num_seqs),
        }
    return options


def _check_options(config: VLLMGeneratorConfig, spec: EngineSpec) -> None:
    slot_rank(max(spec.lora_rank, 1))
    if spec.dtype not in _DTYPES:
        raise ValueError(f"model.dtype must be bf16, fp16 or fp32 for vLLM, got {spec.dtype}")
    context = getattr(spec.hf_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_model_len(spec) > context:
        raise ValueError(
            f"task.max_prompt_length + task.max_completion_length must be <= {context}, the "
            f"model's context, got {max_model_len(spec)}"
        )
    if spec.device.type == "cpu":
        if config.compilation is Compilation.graphs:
            raise ValueError("generator.compilation must be eager or inductor on a CPU, got graphs")
        if config.weights is Weights.sleep:
            raise ValueError("generator.weights must be shared or separate on a CPU, got sleep")
        if config.release_kv_cache:
            raise ValueError("generator.release_kv_cache must be false on a CPU, got true")


def _budget(config: VLLMGeneratorConfig, spec: EngineSpec) -> Budget:
    text = spec.hf_config.get_text_config()
    on_cpu = spec.device.type == "cpu"
    item = spec.dtype.itemsize
    shape = cache_shape(text, bytes_per_value=item if config.kv_cache_dtype == "auto" else 1)
    return plan(
        Demand(
            rows=spec.rows,
            tokens_per_row=max_model_len(spec),
            block_size=_block_size(config, spec) or _CUDA_BLOCK,
        ),
        shape,
        kv_cache_bytes=config.kv_cache_bytes,
        max_num_seqs=config.max_num_seqs,
        most_seqs=_MOST_SEQS[spec.device.type],
        free_bytes=_free_bytes(spec.device),
        reserved_bytes=_weight_bytes(spec),
        on_cpu=on_cpu,
    )


def _block_size(config: VLLMGeneratorConfig, spec: EngineSpec) -> int:
    return config.block_size or (_CPU_BLOCK if spec.device.type == "cpu" else 0)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _memory_share(spec: EngineSpec, budget: Budget) -> float:
    """vLLM refuses to start unless this share of the card is free; the cache's bytes are ours."""
    if spec.device.type != "cuda":
        return 0.5
    total = torch.cuda.mem_get_info(spec.device)[1]
    return min(0.98, (_weight_bytes(spec) + budget.kv_cache_bytes + OVERHEAD_BYTES) / total)


def _weight_bytes(spec: EngineSpec) -> int:
    return weight_bytes(
        spec.hf_config.get_text_config(),
        bytes_per_parameter=spec.dtype.itemsize,
        in_nf4=spec.four_bit,
    )
