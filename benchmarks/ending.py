"""How a benchmark ends: nothing that it started or wrote for the time of a run stays behind."""

from __future__ import annotations

import os
import signal
import sys
import threading


def exit_on_sigterm() -> None:
    """Let SIGTERM, as `timeout` sends it, raise SystemExit.

    Its own action would end this process alone: children would go on with the device, and models
    would stay in the memory's file system.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def exit_with_parent() -> None:
    """In a child: exit as soon as the parent, which holds the other end of stdin, is gone.

    A parent that is killed cannot end its children.
    """
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(1)  # sys.exit would end this thread only
