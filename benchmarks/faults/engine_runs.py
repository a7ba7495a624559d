"""Runs with vLLM on one device, as a user starts them, for the rows that need a CUDA device."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.faults.marked import SHORT_STEPS, Run


def start(folder: Path, name: str, model: str, *more: str, generator: str = "vllm") -> Run:
    """Start a run in `folder`/`name`."""
    overrides = [f"run_dir={name}", f"model.source={model}", f"generator={generator}"]
    return Run(folder, name, [sys.executable, "-m", "rlkit", *overrides, *SHORT_STEPS, *more])
