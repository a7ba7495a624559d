"""These Python functions do the command line's work: they compose, train and read a run.

import rlkit

run = rlkit.train("task=max_of_n", "steps=20", "run_dir=runs/mine")
print(run.status, run.metrics[-1]["reward"])
again = rlkit.load_run("runs/mine")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlkit.config import Config, ConfigError
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.tracking import EvalRecord, SampleRow, Status, read_evals, read_metrics, read_samples
from rlkit.tracking.completions import step_path


class RunFailed(RuntimeError):
    """A run ended with an error; the message is its one line, the traceback is in `log.txt`."""


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run is its folder, read on demand: every property is what lies on disk at that moment."""

    run_dir: Path

    @property
    def status(self) -> Status:
        """Return how the run stands: running, completed, interrupted or failed."""
        return Status(self._status()["status"])

    @property
    def message(self) -> str:
        """Return one line that says why the run ended as it did; empty for a completed run."""
        return str(self._status()["message"])

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the resolved configuration, nested as in `config.yaml`."""
        loaded: dict[str, Any] = yaml.safe_load((self.run_dir / "config.yaml").read_text())
        return loaded

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Return the metrics of every step, in order; the key `step` counts from 0."""
        return read_metrics(self.run_dir)

    @property
    def evals(self) -> list[EvalRecord]:
        """Return the evaluations on held-out prompts, in order: before, periodic ones, after."""
        return read_evals(self.run_dir)

    def samples(self, step: int) -> list[SampleRow]:
        """Return the completions of a training step with their rewards.

        Raises:
            FileNotFoundError: the step was not reached, or completions were not kept.
        """
        return read_samples(step_path(self.run_dir, step))

    def _status(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return record


def compose(*overrides: str) -> Config:
    """Return the checked configuration of one run, from the same words as the command line takes.

    Args:
        overrides: `key=value`, `group=option`, `experiment=name`, as after `rlkit`.

    Returns:
        The configuration; nothing is loaded and no folder is made.

    Raises:
        ConfigError: an option is unknown or out of range, or the words describe a sweep.
    """
    register()
    configs = preflight(list(overrides))
    if len(configs) != 1:
        raise ConfigError(f"overrides must describe one run, got {len(configs)}; see rlkit -m")
    return configs[0]


def train(*overrides: str) -> SavedRun:
    """Train one run in this process, as `rlkit OVERRIDES` does, and return its folder.

    Args:
        overrides: `key=value`, `group=option`, `experiment=name`, as after `rlkit`.

    Returns:
        The run, completed or interrupted; an interrupted one goes on with `resume=auto`.

    Raises:
        ConfigError: bad input, found before anything is written.
        RunFailed: the run ended with an error after its folder was made.
    """
    # Not above: what trains imports model libraries, and reading a run needs none.
    from rlkit.launch.job import train_run

    config = compose(*overrides)
    run_dir = Path(config.run_dir)
    outcome = train_run(config, run_dir=run_dir)
    if outcome.status is Status.failed:
        raise RunFailed(f"{outcome.message} ({run_dir / 'log.txt'})")
    return SavedRun(run_dir)


def load_run(run_dir: str | Path) -> SavedRun:
    """Return the run in a folder that `train` or the command line made.

    Args:
        run_dir: a run folder, finished or not.

    Raises:
        ConfigError: the folder holds no run.
    """
    folder = Path(run_dir)
    if not (folder / "status.json").is_file():
        raise ConfigError(f"run_dir must be the folder of a run, got {folder}")
    return SavedRun(folder)
