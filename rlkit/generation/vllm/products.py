"""Choose the products that multiply the adapter in an engine: plain ones, or Punica's kernels."""

from __future__ import annotations

from typing import Any

from rlkit.generation.vllm.compat.check import Support
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import (
    Accelerate,
    Compilation,
    Products,
    VLLMGeneratorConfig,
    resolve_compilation,
)

_WORKER = "rlkit.generation.vllm.accel.dense_worker.DenseWorker"


def worker_option(config: VLLMGeneratorConfig, support: Support, *, on_cpu: bool) -> dict[str, str]:
    """Give the option of `vllm.LLM` that installs plain products; empty when they are not tried."""
    wanted = config.lora is not Products.punica and config.accelerate is not Accelerate.off
    # torch.compile would trace through the replaced method and keep its choice for ever.
    compiled = resolve_compilation(config.compilation, on_cpu=on_cpu) is Compilation.inductor
    has_names = not support.why_not(Feature.dense)
    return {"worker_cls": _WORKER} if wanted and has_names and not compiled else {}


def why_punica(llm: Any, config: VLLMGeneratorConfig, support: Support) -> str:
    """Say what plain products need that `llm` does not have; empty where it uses them."""
    because: str | None = llm.collective_rpc("rlkit_punica_because")[0]
    if because is None:
        return ""
    if config.accelerate is Accelerate.off:
        return "generator.accelerate=auto"
    return support.why_not(Feature.dense) or because


def describe(llm: Any, config: VLLMGeneratorConfig, support: Support) -> str:
    """Say how `llm` multiplies the adapter, for the summary of an engine with one.

    Raises ValueError when it is not as configured.
    """
    because = why_punica(llm, config, support)
    if not because:
        return ", adapter by dense products"
    if config.lora is Products.dense:
        raise ValueError(f"generator.lora=dense needs {because}")
    why = "" if config.lora is Products.punica else f" (dense products need {because})"
    return f", adapter by Punica's kernels{why}"
