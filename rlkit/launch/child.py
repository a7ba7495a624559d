"""This is the process of one job, from its birth to `run_job` and its exit code.

Light to import: nothing of rlkit may come before `die_with`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

OUTPUT = "output.txt"
"""The file in a job's folder that holds what its processes printed."""
_PR_SET_PDEATHSIG = 1
INTERRUPTED = 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
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


def run(packed: str, folder: Path) -> int:
    """Train the packed configuration in `folder`, from its newest checkpoint if it has one."""
    sys.argv = ["rlkit"]
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(f"process {os.getpid()} from {now}, CUDA_VISIBLE_DEVICES={gpu}", flush=True)
    try:
        from rlkit.config import Resume
        from rlkit.launch.job import run_job
        from rlkit.launch.packed import unpack

        config = replace(unpack(packed), run_dir=str(folder), resume=Resume.auto)
        return run_job(config, run_dir=folder)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        from rlkit.runtime.redact import Redactor

        # To output.txt, whose last line becomes the reason.
        print(Redactor.of_process().text(traceback.format_exc()), file=sys.stderr)
        return 1


def main(folder: str, parent: str = "") -> None:
    """Run the job in a fresh interpreter, with the configuration on standard input.

    `parent` is the process to die with, if a fork server has not seen to that.
    """
    packed = sys.stdin.read()
    if parent:
        set_up_job_process(Path(folder), parent=int(parent))
    sys.exit(run(packed, Path(folder)))
