"""A sign of life of each rank, for what no closed connection tells: a frozen process or machine."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time

from torch.distributed import Store  # type: ignore[attr-defined]

from rlkit.ranks.base import RankError

_PULSE_S = 2.0
_SILENCE_S = 20.0
"""A rank whose pulse is this old is taken for dead: its process is frozen, or its machine is."""


class Pulse:
    """A thread counts in the store as long as its process runs, and others read the count."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._others = [r for r in range(size) if r != rank]
        self._heard: dict[int, tuple[int, float]] = {}
        self._over = threading.Event()
        self._store.add(str(rank), 1)
        self._store.set(f"process {rank}", f"{platform.node()} {os.getpid()}")
        self._thread = threading.Thread(target=self._beat, name="rank-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._over.set()
        self._thread.join(timeout=5.0)

    def miss(self) -> None:
        """Raise RankError when another rank gave no sign of life for too long."""
        lost = self.missing()
        if lost:
            self._end(lost[0])
            raise RankError(f"rank {lost[0]} gave no sign of life for {_SILENCE_S:g} s")

    def missing(self) -> list[int]:
        """Return the ranks whose pulse has stopped."""
        now, lost = time.monotonic(), []
        for rank in self._others:
            try:
                count = self._store.add(str(rank), 0)
            except RuntimeError:  # the store lives in rank 0's launcher, which is gone
                return [0]
            before, since = self._heard.get(rank, (-1, now))
            if count != before:
                self._heard[rank] = (count, now)
            elif now - since > _SILENCE_S:
                lost.append(rank)
        return lost

    def _end(self, rank: int) -> None:
        """Kill a frozen rank of this machine: it would hold its device, and the launcher's end."""
        host, pid = self._store.get(f"process {rank}").decode().rsplit(" ", 1)
        if host == platform.node():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)

    def _beat(self) -> None:
        while not self._over.wait(_PULSE_S):
            try:
                self._store.add(str(self._rank), 1)
            except RuntimeError:
                return
