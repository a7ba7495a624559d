"""This module makes what a job runs from a checked configuration, and loads only what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from rlkit.config import Config, require
from rlkit.ranks import ALONE, Ranks
from rlkit.tabular import TabularModelConfig, TabularTaskConfig
from rlkit.tracking.base import RunInfo, Tracker
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState


class Prepared(Protocol):
    """A prepared run has checked and loaded parts, but no folder yet."""

    @property
    def config(self) -> Config:
        """Return the configuration as the run resolved it, which its folder keeps."""
        ...

    def initial_state(self) -> TrainState:
        """Return the state before the first step."""
        ...

    def trainer(self, tracker: Tracker, stop: StopRequest, *, run_dir: Path) -> Trainer:
        """Return the training loop, observed by `tracker`."""
        ...

    def info(self, *, run_dir: Path, versions: Mapping[str, str], first_step: int) -> RunInfo:
        """Return the record that the tracker gets before the first step."""
        ...

    def save(self, run_dir: Path) -> None:
        """Write what was learnt into the run's folder."""
        ...

    def close(self) -> None:
        """Let go of processes; idempotent."""
        ...


def is_tabular(config: Config) -> bool:
    """Return whether a run needs no language model; with a part of one alone `prepare` says so."""
    parts = (config.model, config.task)
    return any(isinstance(part, TabularModelConfig | TabularTaskConfig) for part in parts)


def prepare(config: Config, *, say: Callable[[str], None], ranks: Ranks = ALONE) -> Prepared:
    """Check and load everything, cheapest first; raises ConfigError with one line."""
    if is_tabular(config):
        from rlkit.assembly.tabular_run import tabular_run

        require(config.gpus == 1, "gpus", "1 with model=tabular", config.gpus)
        return tabular_run(config)
    from rlkit.assembly.assemble import assemble

    return assemble(config, say=say, ranks=ranks)
