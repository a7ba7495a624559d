"""A process can be made to end with its parent, however that one ends."""

from __future__ import annotations

import fcntl
import os
import select


def die_with_parent(lifeline_fd: int) -> None:
    """Let the kernel end this process when the parent's end of the pipe closes, however it dies.

    A watching thread would not do: a function stuck in C code that holds the GIL, such as a regular
    expression, blocks every thread. SIGIO, left unhandled, ends the process from outside.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline_fd, select.POLLIN)
    if poll.poll(0):  # the parent was gone before the signal was armed
        raise SystemExit(1)
