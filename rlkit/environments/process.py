"""An environment's worker as the pool sees it: the call that it makes, and what it answered."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from rlkit.rewards.kept_process import KeptProcess, ending
from rlkit.runtime.redact import Redactor


class EnvironmentProcess(KeptProcess):
    """A worker makes one call at a time. Its methods never block, except `join`."""

    def __init__(self, fn: str, options: Mapping[str, Any], *, memory_bytes: int) -> None:
        """Start loading `fn`; `memory_bytes` bounds the address space, 0 = no limit."""
        self.hello: Mapping[str, Any] | None = None
        """The environment's words about itself, once it is loaded."""
        self.job: int | None = None
        """The number of the call that it makes."""
        self._redactor = Redactor.collect(environ=os.environ, config=options)
        self.calls = 0
        """Calls that it was given."""
        super().__init__("rlkit.environments.worker", memory_bytes)
        self.send({"fn": fn, "options": dict(options)})

    @property
    def idle(self) -> bool:
        """Return whether it can take a call."""
        return self.hello is not None and self.job is None and not self.gone

    @property
    def tail(self) -> str:
        """Return the end of what the environment printed, on one line."""
        text = self._redactor.text(self._tail.decode("utf-8", errors="replace"))  # before it is cut
        return " ".join(text.split())[-300:]

    def submit(self, job: int, call: Mapping[str, Any]) -> None:
        """Ask for one call, whose number is `job`."""
        self.job = job
        self.calls += 1
        self.clock = time.monotonic()
        self.send(call)

    def reply(self) -> Mapping[str, Any] | None:
        """Return the answer to the call, None while there is none; set `gone` when it ended."""
        for message in self.messages():
            if self.hello is None:
                self.hello = message
            elif self.job is not None:
                self.job = None
                answer: Mapping[str, Any] = message
                return answer
        return None

    def kill(self) -> str:
        """End the process and its descendants at once; return how it ended, if by itself."""
        return ending(self.end())
