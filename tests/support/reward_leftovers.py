"""Reward functions that leave processes behind, and a look at which of these still live."""

from __future__ import annotations

from pathlib import Path

from rlkit.types import Completion, FinishReason, Prompt

# Each leaves a process that a kill of the worker's group misses, and writes down its id.
LEAVES = {
    "a session of its own": "subprocess.Popen(sleep, start_new_session=True)",
    "a daemon by two forks": (
        "os.waitpid(p, 0) if (p := os.fork()) else "
        "(os.setsid(), os._exit(0) if os.fork() else os.execvp('sleep', sleep))"
    ),
    "a child that ignores signals": (
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM HUP INT; sleep 600'], "
        "start_new_session=True)"
    ),
    "a tree of sessions": (
        "subprocess.Popen(['sh', '-c', 'setsid sleep 600 & setsid sleep 600 & wait'], "
        "start_new_session=True)"
    ),
}
MODULE = """
import os, subprocess
sleep = ["sleep", "600"]
os.environ["RLKIT_CANARY"] = {canary!r}
def f(group):
    {body}
    {then}
    return [1.0] * len(group)
"""
ENDS = {"by itself": "pass", "a crash": "os.abort()", "a hang": "import time; time.sleep(600)"}


def batch() -> list[list[Completion]]:
    """One prompt with one completion."""
    prompt = Prompt(index=0, ids=(1,), text="q")
    return [[Completion(prompt=prompt, text="a", ids=(1,), finish_reason=FinishReason.stop)]]


def processes_with(canary: str) -> list[int]:
    """Processes whose environment has the canary, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"RLKIT_CANARY={canary}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found
