"""A run of several ranks of which one kills itself in a phase of a step; all else is as ever.

    python -m benchmarks.faults.rank_victim PHASE RANK OVERRIDES...

The launcher starts this module in place of `rlkit.launch.rank_process`. In the rank that is to die
it puts a SIGKILL in front of, or beside, one function.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit.launch import rank_process, ranks
from rlkit.launch.birth import boot

PHASES = ("sampling", "scoring", "summing", "saving")
_VARIABLE = "RLKIT_FAULTS_VICTIM"
_CALLS = {"sampling": 4, "scoring": 3, "summing": 9, "saving": 4}
"""The call that kills: some steps, and a checkpoint, are done by then."""
_DELAY_S = 0.02


def main(file: str, parent: str) -> None:
    """Be one rank; arm it if it is the victim."""
    phase, victim = os.environ[_VARIABLE].split()
    if os.environ["RANK"] == victim:
        _arm(phase)
    rank_process.main(file, parent)


def _arm(phase: str) -> None:
    from rlkit.ranks.group import Group
    from rlkit.training import checkpoint, trainer
    from rlkit.training.deadline import TimedGenerator

    holder: Any
    holder, name = {
        "sampling": (TimedGenerator, "_watched"),
        "scoring": (trainer, "score"),
        "summing": (Group, "_sum"),
        "saving": (checkpoint, "content_hash"),
    }[phase]
    setattr(
        holder, name, _deadly(getattr(holder, name), _CALLS[phase], at_once=phase != "sampling")
    )


def _deadly(function: Callable[..., Any], fatal: int, *, at_once: bool) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal and at_once:
            _die()
        if calls == fatal:
            threading.Timer(_DELAY_S, _die).start()
        return function(*arguments, **named)

    return call


def _die() -> None:
    Path(f"killed_{os.environ[_VARIABLE].split()[0]}.death").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def _run(phase: str, victim: str, overrides: list[str]) -> int:
    from rlkit.cli import run

    os.environ[_VARIABLE] = f"{phase} {victim}"
    patched: Any = ranks
    patched.boot = lambda _module, *arguments: boot("benchmarks.faults.rank_victim", *arguments)
    return run(overrides)


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1], sys.argv[2], sys.argv[3:]))
