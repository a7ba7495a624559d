"""Children of rewards that leave their session or become daemons end with the worker."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reward_faults import batch
from reward_leftovers import ENDS, LEAVES, MODULE, processes_with

from benchmarks.faults.row import Row
from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool


def run(count: int, folder: Path) -> Row:
    """Leave processes behind `count` times, each way with each end of the worker in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(left, end) for left in LEAVES.values() for end in ENDS.values()]
    lost, most = 0, 0
    for number in range(count):
        body, then = cases[number % len(cases)]
        canary = f"{os.getpid()}-{number}"
        file = folder / f"leaves_{number}.py"
        file.write_text(MODULE.format(body=body, then=then, canary=canary))
        config = RewardConfig(workers=1, timeout_s=0.5)
        with RewardPool([RewardSpec("f", f"{file}:f")], config) as pool:
            pool.score(batch())
            time.sleep(0.1)
            most = max(most, len(processes_with(canary)))
        lost += bool(processes_with(canary))
    note = f"{len(cases)} ways; up to {most} processes lived until the pool was closed"
    return Row("processes that rewards leave behind", count, count - lost, lost, note)
