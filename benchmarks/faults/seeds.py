"""F21: the same seed twice gives the same run, another seed gives other rollouts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.faults.row import Row
from benchmarks.faults.runs import differences, finish, prepare
from rlkit.tracking import read_samples


def run(count: int, folder: Path) -> Row:
    """Run `count` seeds twice; survived is a seed whose two runs are equal bit for bit and whose
    first rollouts no other seed has."""
    base = [*prepare(folder), "steps=2"]
    seen: dict[str, int] = {}
    survived, notes = 0, list[str]()
    for seed in range(count):
        names = [f"seed_{seed}_{half}" for half in "ab"]
        problems = [finish(folder, name, [*base, f"seed={seed}"]) for name in names]
        wrong = [p for p in problems if p] or differences(folder / names[0], folder / names[1])
        first = _first_rollouts(folder / names[0]) if not any(problems) else ""
        if first in seen:
            wrong.append(f"rollouts as of seed {seen[first]}")
        seen.setdefault(first, seed)
        survived += not wrong
        notes += [f"seed {seed}: {wrong[0]}"] if wrong else []
    said = "; ".join(notes[:3]) or "pairs bitwise equal, first rollouts of all seeds differ"
    return Row("F21 seeds, each twice", count, survived, count - survived, said)


def _first_rollouts(run: Path) -> str:
    rows = read_samples(run / "completions/step-000000.parquet")
    text = repr([(row.prompt, row.completion) for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()
