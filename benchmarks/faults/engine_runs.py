"""Runs with vLLM on one device, as a user starts them, for the rows that need a CUDA device."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from rlkit.tracking.files import read_lines

ROOT = Path(__file__).parent.parent.parent


def start(
    folder: Path, name: str, model: str, *more: str, generator: str = "vllm"
) -> subprocess.Popen[bytes]:
    """Start a run in `folder`/`name`; what it prints goes to the end of `name`.txt."""
    overrides = [
        *(f"run_dir={name}", f"model.source={model}", f"generator={generator}", "task=max_of_n"),
        *("prompts_per_step=4", "algorithm.group_size=8", "task.max_completion_length=16"),
        *("evaluation.num_prompts=8", "evaluation.samples_per_prompt=1", "tracker.console=plain"),
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "rlkit", *overrides]
    with log_of(folder, name).open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def log_of(folder: Path, name: str) -> Path:
    """Return the file with what a run has printed."""
    return folder / f"{name}.txt"


def steps_of(folder: Path, name: str) -> int:
    """Return how many steps a run has on record."""
    metrics = folder / name / "metrics.jsonl"
    return len(read_lines(metrics)) if metrics.exists() else 0


def wait_for_step(folder: Path, name: str, process: subprocess.Popen[bytes], step: int) -> None:
    """Wait until `step` steps are on record, or the run has ended."""
    while process.poll() is None and steps_of(folder, name) < step:
        time.sleep(0.02)
