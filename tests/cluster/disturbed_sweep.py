"""A sweep of two slow jobs that an engine runs, and what is left of it after a disturbance."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from cli_process import command, environment

from rlkit.tracking import comparable, read_metrics

HERE = Path(__file__).parent
STEPS = 40
PATIENCE_S = 400.0

Metrics = dict[int, list[dict[str, object]]]
"""The metrics of each step, by seed."""


class Sweep:
    """The jobs of seeds 0 and 1 in a folder, by one engine or another."""

    def __init__(self, folder: Path, *engine: str, environ: Mapping[str, str], nap: float) -> None:
        self.folder = folder
        self._environ = {**environment(), "CUDA_VISIBLE_DEVICES": "", **environ}
        self.single = [
            f"algorithm.fn={HERE / 'slow_algorithm.py'}:slow",
            *("model=tabular", "kl=none", f"steps={STEPS}", "evaluation.every=0"),
            *("checkpoint.every=1000", "tracker.metrics_every=1", "tracker.plot=false"),
            "tracker.report=false",
        ]
        """The options of one run, without its seed."""
        several = ("seed=0,1", f"algorithm.nap={nap}", f"hydra.sweep.dir={folder}")
        self._options = [*engine, *self.single, *several]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command that runs what is left of the sweep."""
        return subprocess.Popen(
            command("-m", *self._options, *more),
            cwd=self.folder.parent,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str, code: int = 0) -> str:
        """The command's output, once it has ended with this exit code."""
        return ended(self.start(*more), code)

    def jobs(self) -> dict[int, Path]:
        """The folder of each seed that has begun."""
        found = {}
        for file in self.folder.glob("jobs/*/config.yaml"):
            found[int(yaml.safe_load(file.read_text())["seed"])] = file.parent
        return found

    def step(self, seed: int) -> int:
        """How many steps of a job are on record."""
        folder = self.jobs().get(seed)
        return len(read_metrics(folder)) if folder and (folder / "metrics.jsonl").exists() else 0

    def status(self, seed: int) -> dict[str, Any]:
        """The content of a job's status.json."""
        record: dict[str, Any] = json.loads((self.jobs()[seed] / "status.json").read_text())
        return record

    def starts(self, seed: int) -> list[str]:
        """The lines in which each process of a job names itself."""
        lines = (self.jobs()[seed] / "output.txt").read_text().splitlines()
        return [line for line in lines if line.startswith("process ")]

    def done(self) -> list[int]:
        """The seeds of the jobs that are done."""
        return sorted(seed for seed, job in self.jobs().items() if (job / "DONE").exists())

    def metrics(self) -> Metrics:
        """The part of the metrics that runs of one seed share bitwise, by seed."""
        jobs = self.jobs().items()
        return {seed: [comparable(line) for line in read_metrics(job)] for seed, job in jobs}

    def until(self, ready: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
        """Wait for something while a command runs."""
        give_up = time.monotonic() + PATIENCE_S
        while not ready():
            assert time.monotonic() < give_up, "waited in vain"
            assert process is None or process.poll() is None, ended(process, -99)
            time.sleep(0.2)

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file of the jobs that are done."""
        files = [p for seed in self.done() for p in self.jobs()[seed].rglob("*") if p.is_file()]
        return {str(p): (os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in files}


def ended(process: subprocess.Popen[str], code: int) -> str:
    """The output of a process that ends with this exit code."""
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, output
    return output
