"""Share the base weights of a running vLLM engine, and free the memory of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlkit.generation.vllm.compat import repacked
from rlkit.generation.vllm.config import Weights

if TYPE_CHECKING:
    from rlkit.generation.vllm.engine import Engine

KV_CACHE = ("kv_cache",)
"""vLLM's tag of the memory of keys and values."""
ALL = ("weights", *KV_CACHE, "default")
"""All of vLLM's tags of memory that can sleep."""


def weight_views(llm: Any) -> dict[str, Tensor]:
    """Give the weights of a `vllm.LLM` under Hugging Face names, for the trainer to share.

    They are views, no copies; on a CPU that needs `compat.cpu.prepare_cpu`. Whoever writes to them
    must call `forget_prefixes` before the next request.
    """
    views: dict[str, Tensor] = llm.collective_rpc("rlkit_parameters")[0]
    return views


@torch.no_grad()
def push_weights(llm: Any, tensors: Mapping[str, Tensor]) -> int:
    """Copy `tensors` (by Hugging Face names) over vLLM's weights, in place; the bytes written.

    For training of all parameters (`full.py`): addresses, CUDA graphs and adapters stay, which
    vLLM's own reload_weights does not promise. Tensors that are vLLM's own are skipped.
    Raises ValueError when a name or a shape does not fit, or when vLLM computes on packed copies of
    its weights, before anything is written.
    """
    if problem := repacked.describe(llm.collective_rpc("rlkit_repacked")[0]):
        raise ValueError(f"{problem}; set generator=hf")
    if llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size > 1:
        # Each rank cuts its part out of the whole tensors, as vLLM does when it reads them.
        part: int = llm.collective_rpc("rlkit_load_part", args=(tensors,))[0]
        forget_prefixes(llm)
        return part
    views = weight_views(llm)
    for name, tensor in tensors.items():
        got = None if name not in views else tuple(views[name].shape)
        if got != tuple(tensor.shape):
            raise ValueError(f"vLLM must hold {name} of shape {tuple(tensor.shape)}, got {got}")
    names = [name for name, t in tensors.items() if t.data_ptr() != views[name].data_ptr()]
    if names:
        torch._foreach_copy_([views[n] for n in names], [tensors[n].detach() for n in names])
    forget_prefixes(llm)
    return sum(views[name].nbytes for name in names)


def forget_prefixes(llm: Any) -> None:
    """Empty the prefix cache: its blocks know an adapter's name, but not the base weights.

    Raises RuntimeError while requests run, when vLLM would leave the cache as it is.
    """
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache can be emptied only while no request is running")


def kv_sleep(llm: Any) -> int:
    """Give the key-value cache's memory back to the device; the bytes freed.

    Weights and adapters stay where they are, so that they can be shared with the trainer. It
    needs CUDA and enable_sleep_mode=True. No request may run until `kv_wake`.
    """
    if llm.llm_engine.has_unfinished_requests():
        raise RuntimeError("the key-value cache must stay while requests are running")
    forget_prefixes(llm)
    freed: int = llm.collective_rpc("rlkit_kv_discard")[0]
    return freed


def kv_wake(llm: Any) -> None:
    """Undo `kv_sleep`: the cache is back at its addresses, empty."""
    llm.collective_rpc("rlkit_kv_restore")


def rest(engine: Engine) -> None:
    """Give back what `release_kv_cache` and `weights=sleep` lend the trainer; no-op without them.

    No request may run until `wake`. The engine must rest whenever the trainer computes.
    """
    if engine.asleep:
        return
    if engine.weights is Weights.sleep:
        torch.cuda.synchronize()
        engine.llm.sleep(level=1)
        engine.asleep = ALL
    elif engine.release_kv_cache:
        kv_sleep(engine.llm)
        engine.asleep = KV_CACHE


def wake(engine: Engine) -> None:
    """Undo `rest`; harmless when the engine is awake."""
    if not engine.asleep:
        return
    # vLLM maps its memory past PyTorch's allocator, which keeps what the trainer has freed.
    torch.cuda.empty_cache()
    if engine.weights is Weights.sleep:
        engine.llm.wake_up()
        engine.llm.collective_rpc("rlkit_kv_clear")
    else:
        kv_wake(engine.llm)
    engine.asleep = ()
