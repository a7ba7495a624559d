"""Handle Ctrl-C, SIGTERM and a closed terminal: finish cleanly on the first, at once on the second.

A third signal changes nothing: by then the run is ending as fast as it can.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlkit.runtime.signals import STOP_SIGNALS

_ONE_REQUEST_S = 2.0
"""Seconds in which two different signals are one request. A cluster or a service manager signals
every process of a job, and the process that started this one passes the request on as SIGINT."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; the last finished step is intact."""


class StopRequest:
    """It remembers a request to stop until the run reaches a point where stopping is safe."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._anywhere = False
        self._hurried = False
        self._first: tuple[str, float] | None = None
        """The name of the first signal, and when it came: monotonic seconds."""

    @property
    def hurried(self) -> bool:
        """Return whether the run was asked to stop at once."""
        return self._hurried

    def request(self, reason: str) -> None:
        """Ask the run to stop at its next safe point."""
        self._reason = reason

    def check(self) -> None:
        """Raise Interrupted if a stop was requested.

        Raises KeyboardInterrupt if it was to be at once, and who got the first one swallowed it.
        """
        if self._hurried:
            raise KeyboardInterrupt(self._reason)
        if self._reason is not None:
            raise Interrupted(self._reason)

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Stop in the middle of the block, for work that leaves nothing to finish or to save."""
        self._anywhere = True
        try:
            yield
        finally:
            self._anywhere = False

    def hear(self, reason: str) -> None:
        """Take a signal; raises KeyboardInterrupt where the run is to stop at once."""
        now = time.monotonic()
        name, since = self._first or (reason, now)
        self._first = name, since
        if self._hurried or (reason != name and now - since < _ONE_REQUEST_S):
            return
        first, self._reason = self._reason is None, reason
        if not first or self._anywhere:
            self._hurried = True
            raise KeyboardInterrupt(reason)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield a StopRequest that hears STOP_SIGNALS; a second one raises KeyboardInterrupt.

    SIGHUP stays ignored where it is already: `nohup` means it.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.hear(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in signals_to_hear()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def signals_to_hear() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to stop."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (deaf and number is signal.SIGHUP))
