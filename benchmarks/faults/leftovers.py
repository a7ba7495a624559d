"""Children of rewards that leave their session or become daemons end with the worker."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reward_faults import batch

from benchmarks.faults.row import Row
from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool

LEAVES = {
    "a session of its own": "subprocess.Popen(sleep, start_new_session=True)",
    "a daemon by two forks": (
        "os.waitpid(p, 0) if (p := os.fork()) else "
        "(os.setsid(), os._exit(0) if os.fork() else os.execvp('sleep', sleep))"
    ),
    "a tree of sessions": (
        "subprocess.Popen(['sh', '-c', 'setsid sleep 600 & setsid sleep 600 & wait'], "
        "start_new_session=True)"
    ),
}
ENDS = {"by itself": "pass", "a crash": "os.abort()", "a hang": "import time; time.sleep(600)"}
_MODULE = """
import os, subprocess
sleep = ["sleep", "600"]
os.environ["RLKIT_CANARY"] = {canary!r}
def f(group):
    {body}
    {then}
    return [1.0] * len(group)
"""


def run(count: int, folder: Path) -> Row:
    """Leave processes behind `count` times, each way with each end of the worker in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(left, end) for left in LEAVES.values() for end in ENDS.values()]
    lost, most = 0, 0
    for number in range(count):
        body, then = cases[number % len(cases)]
        canary = f"{os.getpid()}-{number}"
        file = folder / f"leaves_{number}.py"
        file.write_text(_MODULE.format(body=body, then=then, canary=canary))
        config = RewardConfig(workers=1, timeout_s=0.5)
        with RewardPool([RewardSpec("f", f"{file}:f")], config) as pool:
            pool.score(batch())
            time.sleep(0.1)
            most = max(most, len(processes_with(canary)))
        lost += bool(processes_with(canary))
    note = f"{len(cases)} ways; up to {most} processes lived until the pool was closed"
    return Row("processes that rewards leave behind", count, count - lost, lost, note)


def processes_with(canary: str) -> list[int]:
    """Return the processes whose environment has the canary."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"RLKIT_CANARY={canary}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found
