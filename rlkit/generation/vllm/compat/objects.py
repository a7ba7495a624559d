"""The paths from a `vllm.LLM` or a worker to the objects behind are the same in 0.24 to 0.33."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def engine_core(llm: Any) -> Any:
    """Give the `EngineCore` of an engine in this process; None for one in another process."""
    return getattr(llm.llm_engine.engine_core, "engine_core", None)


def model_runner(core: Any) -> Any:
    """Give the model runner of an `EngineCore` in this process."""
    return core.model_executor.driver_worker.model_runner


def adapter_manager(runner: Any) -> Any:
    """Give the manager that holds the adapters of a model runner."""
    return runner.lora_manager._adapter_manager


def register_adapter(runner: Any, request: Any, rank: int) -> None:
    """Register an adapter that holds no values under the id of a `LoRARequest`."""
    runner.lora_manager.add_dummy_lora(request, rank)


def token_capacity(punica: Any) -> int:
    """Give the most rows of a batch that a Punica wrapper has room for."""
    return len(punica._token_lora_indices)


def quant_method(layer: Any) -> Any:
    """Give the method by which a layer wrapped for LoRA multiplies its base weight."""
    return layer._get_quant_method()


def forget_mapping(manager: Any) -> None:
    """Let the next batch tell its rows to the layers, whatever the last batch was."""
    manager._last_mapping = None


def forget_addresses(ours: Iterable[int]) -> None:
    """Drop the entries of Punica's tables that hold any of the addresses `ours`.

    The tables belong to the process, and they keep the buffers of an adapter alive.
    """
    tables = sys.modules.get("vllm.lora.ops.triton_ops.utils")
    if tables is None:
        return
    # The keys are tuples of addresses of the buffers of all parts of a layer.
    addresses = set(ours)
    for table in (tables._LORA_A_PTR_DICT, tables._LORA_B_PTR_DICT):
        for key in [key for key in table if not addresses.isdisjoint(key)]:
            del table[key]


def empty(llm: Any) -> None:
    """Take everything out of an engine that has ended, so that who holds it holds no memory."""
    engine = llm.llm_engine
    finalizer = getattr(engine, "_finalizer", None)
    if finalizer is not None:
        finalizer()  # it holds the model while `engine` lives
    # Whoever still holds the two objects holds empty ones.
    vars(engine).clear()
    vars(llm).clear()


def use_own_graph_pool() -> None:
    """Let the next engine capture its graphs into a pool of its own.

    vLLM has one pool for the whole process, which PyTorch closes with its last graph. While a
    workspace of cuBLAS that was allocated by a capture lives in it, no other capture may follow.
    """
    from vllm.platforms import current_platform

    # The class makes a pool when it has none.
    type(current_platform)._global_graph_pool = None
