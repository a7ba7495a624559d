"""This module gives a new process of rlkit its command, its parent, its signals and its output.

It is light to import, and imports of rlkit only what is as light.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from rlkit.runtime.signals import STOP_SIGNALS

# A fork server or a fresh job imports what the launcher would, however rlkit came onto its path.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from {module} import main; main(*sys.argv[2:])"
)
OUTPUT = "output.txt"
"""The file in a job's folder that holds what its processes printed."""
_PR_SET_PDEATHSIG = 1
INTERRUPTED = 130


def die_with(parent: int) -> None:
    """Ask Linux to SIGKILL this process as soon as `parent`, its parent, is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before it could be watched
        os._exit(1)


def set_up_job_process(folder: Path, *, parent: int) -> None:
    """Make this new process the job's own: its session, its signals, its output, its end."""
    os.setsid()
    die_with(parent)
    for number in (*STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError):  # rather this job than the launcher when memory runs out
        Path("/proc/self/oom_score_adj").write_text("500")
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(output)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def boot(module: str, *arguments: str) -> list[str]:
    """Return the command of a new interpreter that runs `main` of a module."""
    code = _BOOT.format(module=module)
    return [sys.executable, "-c", code, json.dumps(sys.path), *arguments]
