"""This program runs code that a model wrote; `rlkit.rewards.code` starts it, nobody else does.

It imports nothing of rlkit. Its argument is the descriptor that results go to, its standard input
is a job in JSON. It shuts itself in, then runs the code in a child, which dies with it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from typing import Any

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_NS, _NEW_IPC = (
    *(0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000),
)
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
_MAX_FILE = 16 << 20
_MAX_PROCESSES, _MAX_FILES = 64, 64


def main() -> None:
    """Read the job, shut this process in, and run the code in a child."""
    tell = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if job["isolation"] == "namespaces":
        flags = _NEW_USER | _NEW_PID | _NEW_NET | _NEW_NS | _NEW_IPC
        if libc.unshare(flags) != 0:
            reason = os.strerror(ctypes.get_errno())
            os.write(
                tell, f"forbidden isolation=namespaces ({reason}): set isolation=limits".encode()
            )
            return
    child = os.fork()
    if child == 0:  # the first process of the namespace: its end is the end of all others
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _limit(job)
        _execute(job, tell)
        os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)


def _limit(job: dict[str, Any]) -> None:
    """Bound CPU seconds, memory, files and processes of the code and of its children."""
    cpu, memory = max(1, round(job["seconds"])), job["memory_mb"] << 20
    for kind, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, _MAX_FILE),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])


def _execute(job: dict[str, Any], tell: int) -> None:
    """Run the code, then each test on its own; a test that passes is told."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(str(job.get("input", "")).encode()))
    source, tests, secret = job["source"], job["tests"], job.get("secret", "")
    if not tests:
        os.close(tell)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(source, "completion.py", "exec"), names)
    except BaseException:  # SystemExit included: tests may still pass on what is defined
        if not tests:
            sys.stdout.flush()
            return
    for i, test in enumerate(tests):
        try:
            exec(compile(test, f"test_{i}.py", "exec"), names)
        except BaseException:
            continue
        os.write(tell, f"{secret} {i}\n".encode())
    sys.stdout.flush()


if __name__ == "__main__":
    main()
