"""This module makes one tracker out of several: local files first, then what may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import (
    EvalRecord,
    Level,
    Outcome,
    Phase,
    RunInfo,
    StepRecord,
    Tracker,
)
from rlkit.tracking.health import Health
from rlkit.tracking.parting import Repeated


class Fanout:
    """This tracker passes every call to `local`, then to `others`.

    Errors of `local` end the run, errors of `others` do not.

    One of `others` that raises is dropped with one warning. None of them sees a secret.
    """

    def __init__(self, local: Tracker, others: Sequence[Tracker], redactor: Redactor) -> None:
        self._local = local
        self._others = list(others)
        self._redactor = redactor
        self._health: Health | None = None
        self._repeated: Repeated | None = None

    def start(self, info: RunInfo) -> None:
        text = self._redactor.text
        info = replace(
            info,
            model=text(info.model),
            title=text(info.title),
            command=text(info.command),
            config=self._redactor.config(info.config),
            warnings=tuple(text(warning) for warning in info.warnings),
        )
        self._health = Health(info.reward_names)
        # Before the local files begin: they drop what comes again.
        self._repeated = Repeated(info.run_dir, first_step=info.first_step)
        self._all(lambda tracker: tracker.start(info))

    def progress(self, phase: Phase, done: int, total: int) -> None:
        self._all(lambda tracker: tracker.progress(phase, done, total))

    def step(self, record: StepRecord) -> None:
        self._all(lambda tracker: tracker.step(record))
        if self._health is not None:
            for warning in self._health.observe(record):
                self.message(Level.warning, warning)
        if self._repeated is not None:
            for level, text in self._repeated.observe(record):
                self.message(level, text)

    def evaluation(self, record: EvalRecord) -> None:
        self._all(lambda tracker: tracker.evaluation(record))

    def message(self, level: Level, text: str) -> None:
        hidden = self._redactor.text(text)
        self._all(lambda tracker: tracker.message(level, hidden))

    def finish(self, outcome: Outcome) -> None:
        if self._health is not None:
            for total in self._health.totals():
                self.message(Level.warning, total)
        hidden = replace(outcome, message=self._redactor.text(outcome.message))
        self._all(lambda tracker: tracker.finish(hidden))

    def close(self, deadline_s: float) -> None:
        """Close the others within `deadline_s` altogether, the local files last.

        The mirror ends before the console, which shows what the mirror says at its end.
        """
        end = time.monotonic() + deadline_s
        self._others.reverse()
        self._optional(lambda tracker: tracker.close(max(0.0, end - time.monotonic())))
        self._local.close(max(0.0, end - time.monotonic()))

    def _all(self, call: Callable[[Tracker], None]) -> None:
        try:
            call(self._local)
        finally:
            self._optional(call)

    def _optional(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._others):
            try:
                call(tracker)
            except Exception as error:
                if tracker in self._others:
                    self._others.remove(tracker)
                    self._drop(tracker, error)

    def _drop(self, tracker: Tracker, error: Exception) -> None:
        text = f"{type(tracker).__name__} is off from here on: {type(error).__name__}: {error}"
        try:
            tracker.close(1.0)
        except Exception as second:
            text += f"; closing it failed as well: {second}"
        self.message(Level.warning, text)
