"""This module watches the running jobs and stops them: at signals, too many failures or silence."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rlkit.launch.birth import OUTPUT
from rlkit.launch.leases import Lease
from rlkit.launch.processes import Processes
from rlkit.launch.rows import JobRow
from rlkit.launch.settings import IsolatedConfig
from rlkit.launch.sweep_folder import Job
from rlkit.training.stopping import signals_to_hear

_SIGNS_OF_LIFE = (OUTPUT, "metrics.jsonl", "evals.jsonl", "log.txt", "status.json", "checkpoints")
_LOOK_EVERY_S = 5.0
_HURRIED_GRACE_S = 5.0


@dataclass(kw_only=True, slots=True)
class RunningJob:
    """A running job has been sent to the fork server and has not come back."""

    job: Job
    folder: Path
    row: JobRow
    leases: tuple[Lease, ...]
    pid: int = 0
    """0 until the fork server has answered."""
    stopped: str = ""
    """Why it was asked to stop; empty if it was not. It can be resumed."""
    killed: str = ""
    """Why it was killed, if it is to count as failed."""
    signals: int = 0
    """Signals that it has been sent."""
    deadline: float = float("inf")
    """When it is killed: monotonic seconds."""
    heard: float = field(default_factory=time.monotonic)
    """When it last gave a sign of life."""
    newest: float = 0.0
    """Modification time of that sign."""


class SweepStops:
    """This object asks jobs to end, and ends them.

    The first Ctrl-C, SIGTERM or SIGHUP sends each job SIGINT: it finishes its step, saves and
    ends. The second sends another: it ends at once, and its newest checkpoint counts. The third, or
    the end of the grace period, kills it with its process group.
    """

    def __init__(self, settings: IsolatedConfig) -> None:
        self.reason = ""
        """Why the sweep is stopping; empty if it is not."""
        self._settings = settings
        self._level = 0
        self._looked = 0.0

    def request(self, reason: str) -> None:
        """Stop the sweep."""
        self.reason = self.reason or reason
        self._level = max(self._level, 1)

    @contextmanager
    def hear(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as requests to stop, each one more pressing."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason = self.reason or signal.Signals(number).name
            self._level += 1

        numbers = signals_to_hear()
        previous = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def enforce(self, running: Collection[RunningJob], processes: Processes) -> None:
        """Signal what is to stop; kill what had its time or shows no life."""
        now = time.monotonic()
        for run in running:
            if run.pid == 0:
                continue
            while run.signals < min(self._level, 2):
                run.signals += 1
                run.stopped = f"the sweep was stopped ({self.reason}); the next launch resumes it"
                grace = self._settings.grace_seconds if run.signals == 1 else _HURRIED_GRACE_S
                run.deadline = now + grace
                processes.signal(run.pid, signal.SIGINT, group=False)
            if now > run.deadline or self._level > 2:
                run.deadline = now + 1.0
                processes.signal(run.pid, signal.SIGKILL, group=True)
        if self._settings.stall_minutes and now > self._looked + _LOOK_EVERY_S:
            self._looked = now
            for run in running:
                self._listen(run, now)

    def _listen(self, run: RunningJob, now: float) -> None:
        """Kill a job that has shown no sign of life for too long."""
        newest = max(map(_modified, (run.folder / name for name in _SIGNS_OF_LIFE)))
        if newest != run.newest or run.pid == 0:
            run.newest, run.heard = newest, now
        minutes = self._settings.stall_minutes
        if not run.killed and now - run.heard > 60 * minutes:
            run.killed = f"no sign of life for {minutes:g} minutes (hydra.launcher.stall_minutes)"
            run.deadline = now


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
