"""A script in a process of its own that holds vLLM engines, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

_MARK = "RLKIT_TEST_ENGINES"


def run_script(
    script: str, folder: Path, mode: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """`python -c script folder mode`, and when it had ended; no process of it may be left."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), mode],
        env=os.environ | {"OMP_NUM_THREADS": "1", _MARK: str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    ended = time.time()
    assert not _orphans(str(folder)), done.stderr[-3000:]
    return done, ended


def _orphans(mark: str) -> list[int]:
    """Whatever a script starts inherits its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                found.append(process.pid)
    return found
