"""Handle Ctrl-C and SIGTERM: finish cleanly on the first, at once on the second."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The user or the system asked the run to stop; the last finished step is intact."""


class StopRequest:
    """It remembers a request to stop until the run reaches a point where stopping is safe."""

    def __init__(self) -> None:
        self._signal: str | None = None

    def request(self, reason: str) -> None:
        """Ask the run to stop at its next safe point."""
        self._signal = reason

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self._signal is not None:
            raise Interrupted(self._signal)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield a StopRequest that SIGINT and SIGTERM set; a second signal raises KeyboardInterrupt."""
    stop = StopRequest()
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        stop.request(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
