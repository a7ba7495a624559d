"""A terminal is told no control character: those could steer it."""

from __future__ import annotations

from dataclasses import replace

from rlkit.tracking.base import EvalRecord, Level, Outcome, Phase, RunInfo, StepRecord, Tracker
from rlkit.tracking.summary import printable


class PrintableTracker:
    """This tracker hands all names and texts on to a console, with symbols for such characters.

    Samples go as they are: the console cuts them before it shows them.
    """

    def __init__(self, console: Tracker) -> None:
        self._console = console

    def start(self, info: RunInfo) -> None:
        clean = replace(
            info,
            name=printable(info.name),
            title=printable(info.title),
            group=printable(info.group),
            task=printable(info.task),
            model=printable(info.model),
            algorithm=printable(info.algorithm),
            device=printable(info.device),
            dtype=printable(info.dtype),
            dtype_reason=printable(info.dtype_reason),
            reward_names=tuple(map(printable, info.reward_names)),
            command=printable(info.command),
            warnings=tuple(map(printable, info.warnings)),
        )
        self._console.start(clean)

    def progress(self, phase: Phase, done: int, total: int) -> None:
        self._console.progress(phase, done, total)

    def step(self, record: StepRecord) -> None:
        metrics = {printable(name): value for name, value in record.metrics.items()}
        self._console.step(replace(record, metrics=metrics))

    def evaluation(self, record: EvalRecord) -> None:
        metrics = {printable(name): value for name, value in record.metrics.items()}
        self._console.evaluation(replace(record, label=printable(record.label), metrics=metrics))

    def message(self, level: Level, text: str) -> None:
        self._console.message(level, printable(text))

    def finish(self, outcome: Outcome) -> None:
        self._console.finish(replace(outcome, message=printable(outcome.message)))

    def close(self, deadline_s: float) -> None:
        self._console.close(deadline_s)
