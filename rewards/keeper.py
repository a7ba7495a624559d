"""A keeper ends whatever a reward worker leaves behind: daemons and children in new sessions too.

A kill of the worker's process group misses a child that has called `setsid`. The keeper is the
worker's parent and the subreaper of all below: a process whose own parent ends becomes the keeper's
child. So it finds each of them, without privileges and without control groups. It works on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GIVE_UP_S = 1.5


def work_under_a_keeper(lifeline: int, *, close: Sequence[int]) -> None:
    """Fork; only the child returns, and this process keeps it and all that it starts.

    Args:
        lifeline: The pipe whose other end closes when the trainer lets go of the worker or dies.
        close: Files that only the worker may hold open, for their end tells of its end.
    """
    heard, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if worker == 0:
        os.close(heard)
        os.close(said)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)
        if os.getppid() == 1:  # the keeper went before it could be watched
            os._exit(1)
        return
    for file in close:
        os.close(file)
    null = os.open(os.devnull, os.O_RDWR)
    for file in (1, 2):
        os.dup2(null, file)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    _end_like(_keep(worker, lifeline, heard))


def _keep(worker: int, lifeline: int, heard: int) -> int:
    """Wait for the end of the worker or of the trainer, end everything, return the wait status."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(heard, select.POLLIN)
    status: int | None = None
    while status is None:
        ready = dict(poll.poll(None if _is_alive(worker) else 0))
        with contextlib.suppress(BlockingIOError):
            os.read(heard, 4096)
        status = _reap(worker)
        if lifeline in ready:
            break
    give_up = time.monotonic() + _GIVE_UP_S
    while (children := _children()) and time.monotonic() < give_up:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = _reap(worker)
        status = ended if status is None else status
        time.sleep(0.001)
    return signal.SIGKILL if status is None else status


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    return False


def _reap(worker: int) -> int | None:
    """Take leave of every child that has ended; return the worker's wait status if it has."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            found = ended[1] if ended[0] == worker else found
    return found


def _children() -> list[int]:
    me = os.getpid()
    listed = Path(f"/proc/self/task/{me}/children")
    try:
        return [int(pid) for pid in listed.read_text().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == me]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _end_like(status: int) -> None:
    """End with the exit code, or of the signal, of a wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has dumped its own
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1.0)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
