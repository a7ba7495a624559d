"""Start and end of a vLLM engine inside a process that goes on, leaving nothing behind."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlkit.generation.vllm.compat import objects
from rlkit.generation.vllm.compat.pools import free_pools
from rlkit.generation.vllm.compat.warm_up import plain_warm_up
from rlkit.runtime.garbage import garbage_waits


@contextmanager
def faster_start() -> Iterator[None]:
    """Pause the garbage collector and shorten vLLM's warm-up while an engine is built.

    A million objects are made during the import of vLLM, and they stay.
    """
    with garbage_waits(), plain_warm_up():
        yield


def start_afresh() -> None:
    """Get what earlier engines and runs of this process left on the CUDA device out of the way.

    PyTorch's segments do not grow from here on: the pools of memory that can sleep cannot have
    that.
    """
    objects.use_own_graph_pool()
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
    free_pools()


def capture_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes of decoding graphs: coarser than vLLM's, and `max_num_seqs` itself.

    vLLM takes all multiples of 8, some 0.1 s each. Padding a batch by some rows costs far less than
    that over a run, as decoding reads the same weights for all rows.
    """
    sizes = [1, 2, 4, 8, *range(16, 65, 16), *range(96, 257, 32), *range(320, max_num_seqs, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def leave_groups_at_exit() -> None:
    """Leave vLLM's process groups when the interpreter ends, if `leave_groups` has not been called.

    NCCL warns of groups that are still there.
    """
    atexit.register(leave_groups)


def leave_groups() -> None:
    """Destroy vLLM's process groups, as closing an engine does; harmless without any."""
    if not torch.distributed.is_initialized():
        return
    from vllm.distributed import parallel_state

    parallel_state.destroy_model_parallel()  # type: ignore[no-untyped-call]
    parallel_state.destroy_distributed_environment()  # type: ignore[no-untyped-call]


def end(llm: Any) -> None:
    """Shut the engine of a `vllm.LLM` down and empty it, so that who holds it holds no memory."""
    llm.collective_rpc("rlkit_forget_buffers")
    llm.llm_engine.engine_core.shutdown()
    objects.empty(llm)


def collect_garbage() -> None:
    """Free what nothing refers to, on the device as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clean_up() -> None:
    """Free what nothing refers to after an engine has ended, and workspaces of cuBLAS.

    PyTorch keeps one of them for every stream that has run a product, and each engine captures on a
    stream of its own. While any CUDA graph lives they stay: it may use them.
    """
    gc.collect()
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    if not any(issubclass(type(thing), torch.cuda.CUDAGraph) for thing in gc.get_objects()):
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Give the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
