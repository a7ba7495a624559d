"""This module asks Slurm which jobs of a sweep it still has, and says what a user can do with them.

submitit asks Slurm's accounts, which not every cluster has, and asks less and less often. It gives
up on a sweep at its first job that ended without a result. The queue answers at once.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

_JOB = re.compile(r"\d+(_\d+)?")
_QUEUE = ("squeue", "--me", "--noheader", "--array", "--format=%i")
_ASK_EVERY_S = 5.0
_ANSWERS_WITHIN_S = 60.0


class SlurmJobs:
    """These are the jobs that one launch submits for the sweep in a folder."""

    def __init__(self, sweep: Path) -> None:
        self._folder = sweep / ".submitit"
        self._earlier = self._names()
        self._asked = float("-inf")
        self._left = True

    def submitted(self) -> set[str]:
        """Return Slurm's names of the jobs, such as `12_3`; empty before there are any."""
        return self._names() - self._earlier

    def commands(self) -> str:
        """Return the commands that show and end the jobs; empty before there are any."""
        numbers = sorted(self._numbers())
        listed, ended = (sep.join(map(str, numbers)) for sep in (",", " "))
        return f"squeue -j {listed} shows them, scancel {ended} ends them" if numbers else ""

    def are_left(self) -> bool:
        """Return whether Slurm has one of them, waiting or running; True while it cannot say."""
        now = time.monotonic()
        if now - self._asked >= _ASK_EVERY_S:
            self._asked = now
            queued = _queue()
            if queued is not None:
                # An array is one submission; the names of its jobs appear one after another.
                self._left = not self._numbers().isdisjoint(map(_number, queued))
        return self._left

    def _numbers(self) -> set[int]:
        return set(map(_number, self.submitted()))

    def _names(self) -> set[str]:
        if not self._folder.is_dir():
            return set()
        return {path.name for path in self._folder.iterdir() if _JOB.fullmatch(path.name)}


def _number(name: str) -> int:
    return int(name.partition("_")[0])


def _queue() -> set[str] | None:
    """Return the user's jobs in Slurm; None when its controller does not answer."""
    try:
        done = subprocess.run(
            _QUEUE, capture_output=True, text=True, timeout=_ANSWERS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None
