"""Runs of several ranks whose processes can be found again, whatever became of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
_CANARY = "RLKIT_FAULTS_CANARY"


@dataclass(frozen=True)
class Place:
    """The stage holds the folder of the runs and what they run on."""

    folder: Path
    model: str
    device: str
    generator: str
    deadline: float
    """Monotonic seconds at which everything must have ended."""

    def overrides(self, name: str, *more: str) -> list[str]:
        """Return the options of a short run."""
        return [
            *(f"run_dir={name}", f"model.source={self.model}", f"device={self.device}"),
            *(f"generator={self.generator}", "task=max_of_n", "task.max_completion_length=16"),
            *("prompts_per_step=4", "algorithm.group_size=8", "evaluation.num_prompts=8"),
            *("evaluation.samples_per_prompt=1", "tracker.console=plain", "tracker.plot=false"),
            *("tracker.report=false", "reward.workers=1", "memory.torch_threads=1", *more),
        ]

    def start(self, name: str, *more: str, module: Sequence[str] = ("rlkit",)) -> Run:
        """Start a run on two ranks, unless `more` says otherwise."""
        options = self.overrides(name, "gpus=2", *more)
        return Run(self, name, [sys.executable, "-m", *module, *options])

    def seconds_left(self) -> float:
        """Return seconds until everything must have ended, at least 1."""
        return max(1.0, self.deadline - time.monotonic())


class Run:
    """A run of the command line, whose processes can be found, whatever becomes of them."""

    def __init__(self, place: Place, name: str, command: Sequence[str], **environment: str) -> None:
        self.folder = place.folder / name
        self._log = place.folder / f"{name}.txt"
        self._mark = f"{os.getpid()}-{name}"
        paths = os.pathsep.join([str(ROOT), *sys.path])
        own = {"PYTHONPATH": paths, _CANARY: self._mark, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=place.folder,
            env=os.environ | own | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None, and everything is killed, after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for left in self.alive():
                left.kill()
            self.process.wait()
            return None

    def steps(self) -> int:
        """Return the steps on record."""
        file = self.folder / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def until_step(self, count: int, seconds: float) -> bool:
        """Wait until `count` steps are on record; tell if they are."""
        end = time.monotonic() + seconds
        while self.steps() < count and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return self.steps() >= count

    def alive(self) -> list[psutil.Process]:
        """Return the processes that this run started and that still live."""
        return [p for p in psutil.process_iter() if _has_mark(p, self._mark)]

    def left(self) -> int:
        """Return how many of them live 5 s after the end."""
        end = time.monotonic() + 5.0
        while self.alive() and time.monotonic() < end:
            time.sleep(0.1)
        return len(self.alive())

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks."""
        return [p for p in self.alive() if "rank_" in " ".join(_command_of(p))]

    def said(self) -> str:
        """Return the end of the run's output."""
        return self._log.read_text(errors="replace")[-300:]

    def message(self) -> str:
        """Return why the run ended, as its folder says."""
        try:
            found = json.loads((self.folder / "status.json").read_text())
            return f"{found['status']}: {found['message']}"
        except (OSError, ValueError, KeyError) as error:
            return type(error).__name__


def end_all() -> None:
    """Kill whatever the runs of this process left, so that nothing disturbs what comes next."""
    for process in psutil.process_iter():
        if _has_mark(process, f"{os.getpid()}-"):
            process.kill()


def _has_mark(process: psutil.Process, mark: str) -> bool:
    """Tell if a process lives whose mark is `mark`, or begins with it if it ends in a dash."""
    try:
        found = process.environ().get(_CANARY, "")
        ours = found.startswith(mark) if mark.endswith("-") else found == mark
        return bool(ours and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _command_of(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
        return words
    except psutil.Error:
        return []
