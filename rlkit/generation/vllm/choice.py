"""Which loop an engine samples with: the fastest that the configuration and vLLM allow."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.accel.trial import first_difference
from rlkit.generation.vllm.compat.check import Support
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import (
    Accelerate,
    Compilation,
    VLLMGeneratorConfig,
    VLLMSamplingOptions,
    resolve_compilation,
)


class LoopChoice(NamedTuple):
    """How requests get through one engine."""

    decoder: Decoder | None
    past_output_processor: bool
    told: str
    """What the engine's summary says of it; empty where nothing is missing."""


def choose(llm: Any, config: VLLMGeneratorConfig, support: Support, *, on_cpu: bool) -> LoopChoice:
    """Find the fastest loop that `config` allows and the installed vLLM has."""
    if config.accelerate is Accelerate.off:
        return LoopChoice(None, False, ", vLLM's own loop (generator.accelerate=off)")
    if why_not := support.why_not(Feature.core_loop):
        return LoopChoice(None, False, f", vLLM's own loop (rlkit's needs {why_not})")
    found = find_decoder(llm, support)
    if isinstance(found, Decoder) and not support.is_measured:
        # The names are there, but nobody has seen what this version does with them.
        found = first_difference(llm, found) or found
    decoder = found if isinstance(found, Decoder) else None
    return LoopChoice(decoder, True, describe(config, found, on_cpu=on_cpu))


def takes_bursts(sampling: VLLMSamplingOptions) -> bool:
    """Whether a burst samples all that `sampling` asks of vLLM beyond rlkit's own options."""
    return set(sampling.extra) <= {"ignore_eos"}


def describe(config: VLLMGeneratorConfig, found: Decoder | str, *, on_cpu: bool) -> str:
    """Why an engine decodes without bursts, for its summary; empty where it has them."""
    if resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.eager:
        need = "CUDA graphs"
    elif config.sampling.stop:
        need = "no generator.sampling.stop"
    elif not takes_bursts(config.sampling):
        need = "no generator.sampling.extra"
    elif isinstance(found, str):
        need = found
    else:
        return ""
    return f", decoding step by step (bursts need {need})"
