"""The jobs that are running now, and what stops them: signals, too many failures, silence."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rlkit.launch.child import OUTPUT
from rlkit.launch.leases import Lease
from rlkit.launch.processes import Processes
from rlkit.launch.rows import Row
from rlkit.launch.settings import IsolatedConfig
from rlkit.launch.sweep_folder import Job

_SIGNS_OF_LIFE = (OUTPUT, "metrics.jsonl", "evals.jsonl", "log.txt", "status.json", "checkpoints")
_LOOK_EVERY_S = 5.0
_HURRIED_GRACE_S = 5.0


@dataclass(kw_only=True, slots=True)
class Live:
    """A job that has been sent to the nursery and has not come back."""

    job: Job
    folder: Path
    row: Row
    lease: Lease | None
    pid: int = 0
    """0 until the nursery has answered."""
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


class Stops:
    """Asks jobs to end, and ends them.

    The first Ctrl-C or SIGTERM sends each job SIGINT: it finishes its step, saves and ends. The
    second sends another: it ends at once, and its newest checkpoint counts. The third, or the end
    of the grace period, kills it with its process group.
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
        """Take SIGINT and SIGTERM as requests to stop, each one more pressing."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason = self.reason or signal.Signals(number).name
            self._level += 1

        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def enforce(self, running: Collection[Live], processes: Processes) -> None:
        """Signal what is to stop; kill what had its time or shows no life."""
        now = time.monotonic()
        for live in running:
            if live.pid == 0:
                continue
            while live.signals < min(self._level, 2):
                live.signals += 1
                live.stopped = f"the sweep was stopped ({self.reason}); the next launch resumes it"
                grace = self._settings.grace_seconds if live.signals == 1 else _HURRIED_GRACE_S
                live.deadline = now + grace
                processes.signal(live.pid, signal.SIGINT, group=False)
            if now > live.deadline or self._level > 2:
                live.deadline = now + 1.0
                processes.signal(live.pid, signal.SIGKILL, group=True)
        if self._settings.stall_minutes and now > self._looked + _LOOK_EVERY_S:
            self._looked = now
            for live in running:
                self._listen(live, now)

    def _listen(self, live: Live, now: float) -> None:
        """Kill a job that has shown no sign of life for too long."""
        newest = max(map(_modified, (live.folder / name for name in _SIGNS_OF_LIFE)))
        if newest != live.newest or live.pid == 0:
            live.newest, live.heard = newest, now
        minutes = self._settings.stall_minutes
        if not live.killed and now - live.heard > 60 * minutes:
            live.killed = f"no sign of life for {minutes:g} minutes (hydra.launcher.stall_minutes)"
            live.deadline = now


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
