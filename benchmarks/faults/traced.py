"""A child process that is stopped before and after each of its system calls, by Linux's ptrace."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_TRACE_ME, _TO_NEXT_CALL = 0, 24
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


def killed_at(work: Callable[[], object], *, boundary: int | None) -> tuple[int, bool]:
    """Run `work` in a fork and kill it at the entry or exit of a system call.

    Args:
        work: What the child does; other threads of this process are not in it.
        boundary: The stop at which it is killed, from 0; None = it comes to its end.

    Returns:
        The number of stops that it saw, and whether it was killed.

    Raises:
        RuntimeError: The child could not be traced, or it failed.
    """
    child = os.fork()
    if child == 0:
        _be_traced(work)
    _, status = os.waitpid(child, 0)
    stops = 0
    while os.WIFSTOPPED(status):
        if stops == boundary:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return stops, True
        number = os.WSTOPSIG(status)
        # A signal of its own is handed on; the stops of calls and of the start are not signals.
        passed = 0 if number in (signal.SIGTRAP, signal.SIGSTOP) else number
        if _LIBC.ptrace(_TO_NEXT_CALL, child, None, passed) != 0:
            raise RuntimeError(f"ptrace: {os.strerror(ctypes.get_errno())}")
        _, status = os.waitpid(child, 0)
        stops += 1
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the traced child ended with {os.waitstatus_to_exitcode(status)}")
    return stops, False


def _be_traced(work: Callable[[], object]) -> None:
    code = 1
    try:
        if _LIBC.ptrace(_TRACE_ME, 0, None, None) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
    finally:
        os._exit(code)
