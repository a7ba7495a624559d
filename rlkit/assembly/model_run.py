"""A training run of a language model, as `rlkit.launch.prepare` hands it to a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlkit.assembly.assemble import initial_state, make_trainer, run_info
from rlkit.assembly.parts import Parts
from rlkit.tracking.base import RunInfo, Tracker
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState


@dataclass(frozen=True, slots=True)
class ModelRun:
    """`rlkit.assembly.assemble` over one set of parts."""

    parts: Parts

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        return initial_state(self.parts)

    def trainer(self, tracker: Tracker, stop: StopRequest, *, run_dir: Path) -> Trainer:
        """The training loop, observed by `tracker`."""
        return make_trainer(self.parts, tracker, stop, run_dir=run_dir)

    def info(self, *, run_dir: Path, versions: Mapping[str, str], first_step: int) -> RunInfo:
        """What the tracker is told before the first step."""
        return run_info(self.parts, run_dir=run_dir, versions=versions, first_step=first_step)

    def save(self, run_dir: Path) -> None:
        """Write the adapter in PEFT's format, or the model."""
        self.parts.save(run_dir)

    def close(self) -> None:
        """End the reward processes; idempotent."""
        self.parts.close()
