"""Choose the loop that an engine samples with: the fastest that its options and vLLM allow."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlkit.generation.speculation import refuse_speculation
from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.accel.trial import first_difference
from rlkit.generation.vllm.compat.check import Support
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import (
    Accelerate,
    Compilation,
    VLLMGeneratorConfig,
    resolve_compilation,
    takes_bursts,
)


class LoopChoice(NamedTuple):
    """This says how requests get through one engine."""

    decoder: Decoder | None
    past_output_processor: bool
    told: str
    """The engine's summary says this of it; empty where nothing is missing."""
    no_bursts: str
    """Bursts need this and the engine lacks it; empty where it has them."""


def choose(llm: Any, config: VLLMGeneratorConfig, support: Support, *, on_cpu: bool) -> LoopChoice:
    """Find the fastest loop that `config` allows and the installed vLLM has.

    Args:
        llm: A running `vllm.LLM`.
        config: Its options.
        support: The features whose private names the installed vLLM has.
        on_cpu: True where the engine runs on a CPU.

    Returns:
        The loop, and what the engine's summary says of it.

    Raises:
        ValueError: Tokens are to be guessed, and the engine has no bursts.
    """
    found = _choose(llm, config, support, on_cpu=on_cpu)
    if config.speculation.is_on and found.no_bursts:
        where = f"vLLM step by step (bursts need {found.no_bursts})"
        refuse_speculation(config.speculation, where=where)
    return found


def _choose(llm: Any, config: VLLMGeneratorConfig, support: Support, *, on_cpu: bool) -> LoopChoice:
    if config.accelerate is Accelerate.off:
        told = ", vLLM's own loop (generator.accelerate=off)"
        return LoopChoice(None, False, told, "generator.accelerate=auto")
    if why_not := support.why_not(Feature.core_loop):
        return LoopChoice(None, False, f", vLLM's own loop (rlkit's needs {why_not})", why_not)
    found = find_decoder(llm, support, config.speculation)
    if isinstance(found, Decoder) and not support.is_measured:
        # The names are there, but nobody has seen what this version does with them.
        found = first_difference(llm, found) or found
    decoder = found if isinstance(found, Decoder) else None
    told = describe(config, found, on_cpu=on_cpu)
    return LoopChoice(decoder, True, told, why_no_bursts(config, found, on_cpu=on_cpu))


def why_no_bursts(config: VLLMGeneratorConfig, found: Decoder | str, *, on_cpu: bool) -> str:
    """Say what bursts need that an engine, or its configuration, does not have; else nothing."""
    if resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.eager:
        return "CUDA graphs"
    if config.sampling.stop:
        return "no generator.sampling.stop"
    if not takes_bursts(config.sampling):
        return "no generator.sampling.extra"
    return found if isinstance(found, str) else ""


def describe(config: VLLMGeneratorConfig, found: Decoder | str, *, on_cpu: bool) -> str:
    """Say why an engine decodes without bursts, for its summary; empty where it has them."""
    need = why_no_bursts(config, found, on_cpu=on_cpu)
    return f", decoding step by step (bursts need {need})" if need else ""
