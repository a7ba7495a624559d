"""F1: SIGKILL at random instants of real runs, which the same command then brings to their end."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil

from benchmarks.faults.row import Row
from benchmarks.faults.runs import (
    differences,
    family,
    finish,
    leftovers,
    prepare,
    start,
    tables,
    variants,
)

_KILLS_OF_A_RUN = (4, 8)
"""The fewest and the most."""


def run(count: int, folder: Path) -> Row:
    """Kill runs `count` times altogether: each configuration once, then those on tables.

    A kill is survived when its run ends with the numbers of an undisturbed one, no process of it
    lives on and nothing half-written is left.
    """
    base, draw = prepare(folder), random.Random(0)
    names = {name: [*base, *words] for name, words in variants()} | dict(tables())
    used, quick = list(names)[: max(1, count // 4)], [name for name, _ in tables()]
    seconds: dict[str, float] = {}
    injected = survived = orphans = runs = on_tables = 0
    notes: list[str] = []
    while injected < count:
        name = used[runs] if runs < len(used) else draw.choice(quick)
        overrides = names[name]
        truth = f"truth_{list(names).index(name)}"
        if name not in seconds:
            begun = time.monotonic()
            if problem := finish(folder, truth, overrides):
                raise RuntimeError(f"{name}: {problem}")
            seconds[name] = time.monotonic() - begun
        victim = f"run_{runs}"
        runs += 1
        kills, left = _kill(folder, victim, overrides, draw, seconds[name], most=count - injected)
        problem = finish(folder, victim, overrides)
        wrong = [problem] if problem else differences(folder / victim, folder / truth)
        wrong += [str(path.name) for path in leftovers(folder / victim)]
        injected += kills
        on_tables += kills if name in quick else 0
        orphans += left
        survived += 0 if wrong or left else kills
        notes += [f"{name}: {wrong[0]}"] if wrong else []
    said = "; ".join(notes[:3]) or "all ended bitwise as undisturbed, nothing half-written left"
    note = (
        f"{runs} runs of {len(used)} configurations, {on_tables} of the kills in runs on tables; "
        f"{orphans} processes left over; {said}"
    )
    return Row("F1 SIGKILL at a random instant", injected, survived, injected - survived, note)


def _kill(
    folder: Path,
    name: str,
    overrides: list[str],
    draw: random.Random,
    seconds: float,
    *,
    most: int,
) -> tuple[int, int]:
    """Start and kill a run up to `most` times; return the kills, and processes that lived on."""
    kills = orphans = 0
    for _ in range(min(most, draw.randint(*_KILLS_OF_A_RUN))):
        process = start(folder, name, overrides)
        time.sleep(draw.uniform(0.0, seconds))
        if process.poll() is not None:
            break
        children = family(process)
        process.send_signal(signal.SIGKILL)
        if process.wait(60) != -signal.SIGKILL:
            break  # it came to its end first: that was no kill
        _, alive = psutil.wait_procs(children, timeout=5)
        kills, orphans = kills + 1, orphans + len(alive)
    return kills, orphans
