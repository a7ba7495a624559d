"""A reward worker as the pool sees it: what it is to answer, what it answered, what it printed."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewards.kept_process import KeptProcess, ending
from rlkit.rewards.printed import Collected, without_marks
from rlkit.rewards.wire import NOT_STARTED, PROGRESS, Failure, Reply, Unit
from rlkit.runtime.redact import Redactor


class Worker(KeptProcess):
    """A worker serves one request at a time. Its methods never block, except `join`.

    Attributes are read by the pool: `units` are still to be answered; `per_sample` is None until
    the functions are loaded.
    """

    def __init__(self, functions: Sequence[Mapping[str, Any]], *, max_memory_bytes: int) -> None:
        self.per_sample: list[bool] | None = None
        self.units: list[Unit] = []
        self.printed = 0
        self.load_error: str | None = None
        self._redactor = Redactor.collect(environ=os.environ, config={"functions": list(functions)})
        self._num_units = 0
        self.said = Collected()
        with tempfile.TemporaryFile() as shared:
            shared.truncate(PROGRESS.size)
            self._progress = mmap.mmap(shared.fileno(), PROGRESS.size)
            file = shared.fileno()
            super().__init__("rlkit.rewards.worker", file, pass_fds=(file,))
        self.send({"functions": list(functions), "max_memory_bytes": max_memory_bytes})

    @property
    def idle(self) -> bool:
        """Return whether it can take a request."""
        return self.per_sample is not None and not self.units and not self.gone

    @property
    def current(self) -> int | None:
        """Return the position in `units` of the call that it makes; None before the first one."""
        (position,) = PROGRESS.unpack_from(self._progress, 0)
        current: int = position - (self._num_units - len(self.units))
        return current if position != NOT_STARTED and 0 <= current < len(self.units) else None

    @property
    def tail(self) -> str:
        """Return the end of what the functions printed, on one line."""
        text = without_marks(self._tail.decode("utf-8", errors="replace"))
        text = self._redactor.text(text)  # before it is cut
        return " ".join(text.split())[-300:]

    def submit(self, units: Sequence[Unit], groups: Mapping[int, object]) -> None:
        """Ask for `units`, given the encoded `groups` that they need."""
        self.units = list(units)
        self._num_units = len(units)
        PROGRESS.pack_into(self._progress, 0, NOT_STARTED)
        self.printed = 0
        self.clock = time.monotonic()
        self.send({"groups": {str(key): group for key, group in groups.items()}, "units": units})

    def hear(self, data: bytes) -> None:
        """Count what the functions printed, and keep what is to be logged."""
        self.printed += len(data)
        self.said.add(data)
        super().hear(data)

    def read_replies(self) -> list[tuple[Unit, Reply]]:
        """Return the calls answered since the last look; set `gone` when the process ended."""
        replies = []
        for message in self.messages():
            self.clock = time.monotonic()
            if isinstance(message, dict):
                self.per_sample = message.get("per_sample")
                self.load_error = message.get("error")
                continue
            self.printed = 0
            if len(message) > len(self.units):
                self.gone = True  # a function forked, and the copy answers too
                break
            for seconds, values, problems in message:
                known = [(position, Failure(kind), text) for position, kind, text in problems]
                replies.append((self.units.pop(0), Reply(seconds, values, known)))
        return replies

    def kill(self) -> tuple[Failure, str]:
        """End the process and its descendants at once; return how it ended, if by itself."""
        code = self.end()
        self._progress.close()
        return Failure.killed if code < 0 else Failure.exited, ending(code)
