"""vLLM's memory that can sleep: freeing parts of it, and what engines that ended leave behind."""

from __future__ import annotations

from typing import Any

import torch

KV_CACHE = "kv_cache"
"""vLLM's tag of the key-value cache's memory."""
_CLOSED = "closed "
"""This starts the names of the memory pools of engines that have ended."""


def discard_kv_cache() -> int:
    """Give the memory of the key-value cache back to the device; return the bytes freed.

    Raises RuntimeError when the engine was started without `enable_sleep_mode`.
    """
    from vllm.device_allocator.cumem import CuMemAllocator, unmap_and_release

    allocator = CuMemAllocator.get_instance()
    # No kernel may still read the memory when it is unmapped.
    torch.cuda.synchronize()
    held = [d for d in allocator.pointer_to_data.values() if d.tag == KV_CACHE]
    if not held:
        raise RuntimeError("the key-value cache can be freed only with enable_sleep_mode=True")
    if hasattr(allocator, "discard"):  # vLLM >= 0.29
        allocator.discard((KV_CACHE,))
    else:
        # Older versions have no `discard`, so vLLM's own function releases each piece.
        for data in held:
            unmap_and_release(data.handle)
    torch.cuda.empty_cache()
    return sum(int(data.handle[1]) for data in held)


def map_kv_cache() -> None:
    """Map memory for the key-value cache again at the same addresses; it holds anything."""
    from vllm.device_allocator.cumem import CuMemAllocator

    CuMemAllocator.get_instance().wake_up([KV_CACHE])


def abandon_pools(asleep: tuple[str, ...]) -> None:
    """Count the memory of an engine that could sleep, and has ended, no more; free what is unused.

    vLLM keeps the pools, and lets no other engine sleep while they hold memory. What is still in
    use, such as a model on the engine's weights, stays mapped; `free_pools` looks again. Memory of
    the tags `asleep` is freed already.
    """
    allocator = _allocator()
    if allocator is None:
        return
    torch.cuda.synchronize()
    # vLLM's own table must be empty: it refuses to let another engine sleep otherwise.
    held, left = allocator.pointer_to_data, _left(allocator)
    left.update({address: data for address, data in held.items() if data.tag not in asleep})
    held.clear()
    pools = allocator.allocator_and_pools
    for tag in [tag for tag in pools if not tag.startswith(_CLOSED)]:
        # The pool is kept: were it destroyed, PyTorch would free its segments once more.
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
            # A segment without live tensors is nobody's: its memory goes back to the device.
            data = left.get(segment["address"])
            if data is not None and segment["allocated_size"] == 0:
                del left[segment["address"]]
                unmap_and_release(data.handle)


def _allocator() -> Any:
    """Give vLLM's allocator of memory that can sleep; None where nothing has used it."""
    from vllm.device_allocator import cumem

    return cumem.CuMemAllocator.instance if cumem.cumem_available else None


def _left(allocator: Any) -> dict[int, Any]:
    """Give the segments of ended engines by address; they are kept on vLLM's own object."""
    left: dict[int, Any] = vars(allocator).setdefault("rlkit_left", {})
    return left
