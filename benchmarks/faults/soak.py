"""A long run: its memory and its open files stay flat, and its report opens in under a second."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.faults.row import Row
from benchmarks.faults.runs import prepare, start
from rlkit.tracking.files import read_lines

_MOST_GROWTH = 0.05
"""The growth may be this share of the memory after the first tenth of the run."""
_REPORT_S = 1.0


class Look(NamedTuple):
    """One look at the run's process."""

    step: int
    memory: int
    """Resident bytes of the process and its children."""
    files: int


def run(count: int, folder: Path) -> Row:
    """Train a tiny model for `count` steps and watch its process.

    The row counts three promises: memory, open files, and the time to write the report.
    """
    base = [o for o in prepare(folder) if not o.startswith(("steps=", "evaluation.every="))]
    base += [f"steps={count}", "evaluation.every=200", "checkpoint.every=50"]
    base += ["optim.learning_rate=1e-5"]
    looks = _watch(folder, base)
    early = [look for look in looks if 0.1 * count <= look.step <= 0.3 * count]
    late = [look for look in looks if look.step >= 0.8 * count]
    memory = [_median([look.memory for look in part]) for part in (early, late)]
    files = [_median([look.files for look in part]) for part in (early, late)]
    done = len(read_lines(folder / "run/metrics.jsonl"))
    seconds = _report_seconds(folder / "run")
    kept = [
        done == count and memory[1] <= memory[0] * (1 + _MOST_GROWTH),
        files[1] <= files[0],
        seconds < _REPORT_S,
    ]
    note = (
        f"{done} steps; memory {memory[0] / 2**20:.0f} MiB early, {memory[1] / 2**20:.0f} MiB "
        f"late; open files {files[0]} and {files[1]}; the page is written in {seconds:.2f} s"
    )
    return Row(f"Soak, {count} steps", len(kept), sum(kept), len(kept) - sum(kept), note)


def _watch(folder: Path, overrides: list[str]) -> list[Look]:
    process = start(folder, "run", overrides)
    seen, looks = psutil.Process(process.pid), list[Look]()
    metrics = folder / "run/metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.5)
        try:
            family = [seen, *seen.children(recursive=True)]
            memory = sum(one.memory_info().rss for one in family)
            files = sum(len(os.listdir(f"/proc/{one.pid}/fd")) for one in family)
            step = metrics.read_bytes().count(b"\n")
        except (psutil.Error, OSError):
            continue
        looks.append(Look(step, memory, files))
    return looks


def _report_seconds(run: Path) -> float:
    """Return the seconds that the page of a finished run takes, after the imports."""
    from rlkit.report.build import write_page

    begun = time.monotonic()
    write_page(run)
    return time.monotonic() - begun


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2] if values else sys.maxsize
