"""This module chooses the device of a run, and how many CPU threads torch uses."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch
import yaml

from rlkit.config import ConfigError, DeviceChoice

_SIZE, _REPEATS = 576, 60  # a matrix product of the size that decoding a small model does


def choose_threads(wanted: int, run_dir: Path) -> int:
    """Return `wanted`, or what the run in `run_dir` used before, or whatever is faster now.

    A resumed run keeps its number: sums of another number of threads differ in the last bit.
    """
    return wanted or _saved(run_dir) or fastest_thread_count()


def fastest_thread_count() -> int:
    """Return one thread, or all that torch would use, whichever is faster.

    Both are timed at small matrix products, which takes 0.1 s.
    """
    most = torch.get_num_threads()
    seconds = {threads: _seconds(threads) for threads in {1, most}}
    return min(seconds, key=lambda threads: seconds[threads])


def _seconds(threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.ones(48, _SIZE), torch.ones(_SIZE, 4 * _SIZE)
    try:
        a @ b
        start = time.perf_counter()
        for _ in range(_REPEATS):
            a @ b
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(before)


def _saved(run_dir: Path) -> int:
    try:
        return int(yaml.safe_load((run_dir / "config.yaml").read_text())["memory"]["torch_threads"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 0


def require_compiler() -> None:
    """Raise ConfigError unless Triton finds a C compiler, in its own order: $CC, gcc, clang.

    It builds a launcher for each kernel; without one the first step would fail.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ConfigError(
            "device=cuda must have a C compiler for Triton's kernels (gcc or clang on PATH, or "
            "CC; for instance `apt-get install gcc`), got none"
        )


def resolve_device(choice: DeviceChoice) -> torch.device:
    """Return the device that `choice` means here; raises ConfigError when there is none."""
    available = torch.cuda.is_available()
    if choice is DeviceChoice.cuda and not available:
        raise ConfigError("device must be cpu or auto without a CUDA device, got cuda")
    use_cuda = available and choice is not DeviceChoice.cpu
    if use_cuda:
        require_compiler()
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
