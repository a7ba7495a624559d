"""A run folder that grows, written by the real tracker, whose lock this process holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml
from made_up_sweep import BASE
from tracked_run import evaluation, info, record

from rlkit.report.build import ReportOptions
from rlkit.report.live.server import LiveServer
from rlkit.report.live.watcher import Watcher
from rlkit.tracking import Redactor, Status
from rlkit.tracking.holding import hold
from rlkit.tracking.local import LocalTracker


class GrowingRun:
    """Steps and evaluations come when they are asked for."""

    def __init__(self, folder: Path, *, seed: int = 0, hostile: str = "") -> None:
        """`hostile` goes into every completion, prompt and label."""
        folder.mkdir(parents=True)
        self.folder, self._seed, self._hostile, self._done = folder, seed, hostile, 0
        config = {**BASE, "seed": seed, "steps": 40, "run_dir": str(folder)}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._held = ExitStack()
        self._held.enter_context(hold(folder))
        self._say(Status.running)
        self._tracker = LocalTracker(folder, Redactor(), completions=True, plot=False)
        self._tracker.start(replace(info(folder), name=folder.name, config=config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def steps(self, count: int) -> None:
        """Do further steps."""
        for step in range(self._done, self._done + count):
            found = record(step, seed=self._seed)
            rows = [
                replace(row, completion=self._hostile + row.completion) for row in found.samples
            ]
            metrics = {**found.metrics, "rollouts/sampled": 48.0}
            self._tracker.step(replace(found, metrics=metrics, samples=rows))
        self._done += count

    def evaluate(self, label: str, *, rate: float) -> None:
        """Evaluate after the steps that are done."""
        metrics = {"kl": 0.1 * self._done, "samples": 48.0 * self._done, "entropy": 1.0}
        found = evaluation(label + self._hostile.replace("\ud800", ""), self._done, rate=rate)
        self._tracker.evaluation(replace(found, metrics=metrics))

    def end(self) -> None:
        """Complete the run."""
        self._tracker.close(1.0)
        self._say(Status.completed)
        (self.folder / "DONE").touch()
        self._held.close()

    def _say(self, status: Status) -> None:
        said = {"status": status.value, "message": "", "pid": 1, "time": 1.0}
        (self.folder / "status.json").write_text(json.dumps(said))


@contextmanager
def serving(*paths: Path, every: float = 0.2) -> Iterator[LiveServer]:
    """A server of the page of `paths` at a port that is free."""
    watcher = Watcher(paths, ReportOptions(figures=False), every=every)
    with LiveServer(watcher, port=0).serving() as server:
        yield server
