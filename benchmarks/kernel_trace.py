"""Kernels of a profile, as text: which took how long, and how long the device waited for them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_NAME = 90
"""Characters of a kernel's name that are shown."""


class Kernel(NamedTuple):
    """One launch on the device; microseconds."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        """Return when it ended."""
        return self.start + self.duration


def kernels_of(run: Callable[[], object], folder: Path) -> list[Kernel]:
    """Return the kernels and copies that `run` launched, in order of their start."""
    with _profiled(folder / "trace.json") as file:
        run()
    events = json.loads(file.read_text())["traceEvents"]
    file.unlink()
    wanted = ("kernel", "gpu_memcpy", "gpu_memset")
    found = (
        Kernel(str(e["name"]), float(e["ts"]), float(e["dur"]))
        for e in events
        if e.get("cat") in wanted
    )
    return sorted(found, key=lambda kernel: kernel.start)


@contextmanager
def _profiled(file: Path) -> Iterator[Path]:
    on_cuda = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as made:
        yield file
    made.export_chrome_trace(str(file))


def busy_us(kernels: Sequence[Kernel]) -> float:
    """Return the microseconds in which at least one kernel ran; `kernels` in order of start."""
    total, end = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, kernel.end - max(kernel.start, end))
        end = max(end, kernel.end)
    return total


def by_name(kernels: Sequence[Kernel], *, most: int = 40) -> list[str]:
    """Return a line for each kernel's name, the one that took longest first, after a line of sums.

    Args:
        kernels: In order of their start.
        most: Lines of names at most; the others are summed up in one.

    Returns:
        Lines of text; times in milliseconds.
    """
    if not kernels:
        return ["no kernels"]
    groups: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.name].append(kernel.duration)
    span = max(kernel.end for kernel in kernels) - kernels[0].start
    busy = busy_us(kernels)
    lines = [
        f"{len(kernels)} kernels in {span / 1e3:.2f} ms: busy {busy / 1e3:.2f} ms, "
        f"idle {(span - busy) / 1e3:.2f} ms",
        f"{'ms':>9} {'count':>7} {'us each':>9}  kernel",
    ]
    order = sorted(groups.items(), key=lambda item: -sum(item[1]))
    for name, times in order[:most]:
        lines.append(_line(times, name[:_NAME]))
    if rest := [time for _, times in order[most:] for time in times]:
        lines.append(_line(rest, f"{len(order) - most} others"))
    return lines


def _line(times: Sequence[float], name: str) -> str:
    total = sum(times)
    return f"{total / 1e3:9.3f} {len(times):7d} {total / len(times):9.2f}  {name}"


def one_step(kernels: Sequence[Kernel], marker: str) -> list[Kernel]:
    """Return the kernels from one that has `marker` in its name to before the next such.

    They are those of the step in the middle; there must be two with `marker` at least.
    """
    marks = [i for i, kernel in enumerate(kernels) if marker in kernel.name]
    if len(marks) < 2:
        return []
    middle = min(len(marks) // 2, len(marks) - 2)
    return list(kernels[marks[middle] : marks[middle + 1]])


def in_order(kernels: Sequence[Kernel]) -> list[str]:
    """Return a line for each kernel: when it starts, the gap before it, how long it takes."""
    if not kernels:
        return ["no step was found"]
    begin, end = kernels[0].start, kernels[0].start
    lines = [f"{'at us':>9} {'gap us':>8} {'us':>8}  kernel"]
    for kernel in kernels:
        gap = kernel.start - end
        lines.append(
            f"{kernel.start - begin:9.1f} {gap:8.2f} {kernel.duration:8.2f}  {kernel.name[:_NAME]}"
        )
        end = max(end, kernel.end)
    return lines
