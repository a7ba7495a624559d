"""The command line in a process of its own, from its start; tests/warm_cli.py spares that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

RunCLI = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    """The command line in this interpreter."""
    return [sys.executable, "-m", "rlkit", *arguments]


def environment() -> dict[str, str]:
    """One thread a process: the suite shares two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
