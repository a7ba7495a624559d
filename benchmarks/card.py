"""A card made as small as a run's target, and what others hold of it."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import torch

from rlkit.plan.parts import CONTEXT_BYTES, GB
from rlkit.runtime.torch_compat import nvml_index


def leave(budget: int, before: int) -> int:
    """Take everything of the card but `budget` bytes, outside of torch; returns what was taken."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    torch.zeros(1, device="cuda")
    _, total = torch.cuda.mem_get_info()
    size = total - before - budget
    if size <= 0:
        return 0
    pointer = ctypes.c_uint64()
    error = ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
    if error != 0:
        raise RuntimeError(f"could not take {size / GB:.2f} GB of the card: CUDA error {error}")
    return size


def used_before_this_process() -> int:
    """What others hold of the card; asked of the driver before this process has a context."""
    if not torch.cuda.is_available():
        return 0
    index = nvml_index(0)  # of the first device that CUDA shows us
    if find_spec("pynvml") is None or index is None:
        free, total = torch.cuda.mem_get_info()
        return max(0, total - free - CONTEXT_BYTES)
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    # Version 2 leaves out what the driver keeps for itself, as CUDA's own count does.
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)
