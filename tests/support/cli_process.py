"""The command line in a process of its own, from its start; `warm_cli` spares that start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RunCLI = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    """The command line in this interpreter."""
    return [sys.executable, "-m", "rlkit", *arguments]


def from_the_start(
    *arguments: str, cwd: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`python -m rlkit *arguments`, as a user would type it."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment() -> dict[str, str]:
    """One thread a process: the suite shares two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
