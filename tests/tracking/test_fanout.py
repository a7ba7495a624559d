"""Local files come first; what else fails is dropped with one warning and no secret gets out."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tracked_run

from rlkit.tracking import (
    ConsoleMode,
    EvalRecord,
    Level,
    Outcome,
    Phase,
    Redactor,
    RunInfo,
    Status,
    StepRecord,
    TrackerConfig,
    TrackingError,
    read_metrics,
)
from rlkit.tracking.build import build_console
from rlkit.tracking.fanout import Fanout
from rlkit.tracking.local import LocalTracker

_CANARY = "hf_canary123456"


class Witness:
    """A tracker that notes what it is told and raises at one kind of call."""

    def __init__(self, run_dir: Path, *, raises_at: str = "") -> None:
        self.run_dir = run_dir
        self.raises_at = raises_at
        self.calls: list[tuple[str, object]] = []

    def _note(self, name: str, what: object) -> None:
        self.calls.append((name, what))
        if name == self.raises_at:
            raise ConnectionError(f"no {name} with {_CANARY}")

    def start(self, info: RunInfo) -> None:
        self._note("start", info)

    def progress(self, phase: Phase, done: int, total: int) -> None:
        self._note("progress", (phase, done, total))

    def step(self, record: StepRecord) -> None:
        self._note("step", len(read_metrics(self.run_dir)))

    def evaluation(self, record: EvalRecord) -> None:
        self._note("evaluation", record)

    def message(self, level: Level, text: str) -> None:
        self._note("message", (level, text))

    def finish(self, outcome: Outcome) -> None:
        self._note("finish", outcome)

    def close(self, deadline_s: float) -> None:
        self._note("close", deadline_s)

    def told(self, name: str) -> list[object]:
        return [what for call, what in self.calls if call == name]


def drive(tracker: Fanout, run_dir: Path) -> None:
    info = replace(
        tracked_run.info(run_dir),
        model=f"https://me:{_CANARY}@hub/model",
        warnings=(f"token {_CANARY} is old",),
    )
    tracker.start(info)
    tracker.evaluation(tracked_run.evaluation("before", 0, rate=0.2))
    for step in range(3):
        tracker.progress(Phase.generate, 1, 2)
        tracker.step(tracked_run.record(step))
    tracker.message(Level.warning, f"cannot log in with {_CANARY}")
    outcome = Outcome(status=Status.failed, message=f"bad {_CANARY}", wall_seconds=1.0)
    tracker.finish(outcome)
    tracker.close(5.0)


def local(run_dir: Path, redactor: Redactor) -> LocalTracker:
    return LocalTracker(run_dir, redactor, completions=True, plot=False)


def test_local_files_are_written_before_others_are_told(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    redactor = Redactor([_CANARY])
    drive(Fanout(local(tmp_path, redactor), [witness], redactor), tmp_path)
    assert witness.told("step") == [1, 2, 3]
    assert _CANARY not in repr(witness.calls)
    assert (Level.warning, "cannot log in with ***") in witness.told("message")
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert _CANARY.encode() not in written


@pytest.mark.parametrize(
    "call", ["start", "progress", "step", "evaluation", "message", "finish", "close"]
)
def test_a_tracker_that_raises_is_dropped_with_one_warning(tmp_path: Path, call: str) -> None:
    bad, good = Witness(tmp_path, raises_at=call), Witness(tmp_path)
    redactor = Redactor([_CANARY])
    drive(Fanout(local(tmp_path, redactor), [bad, good], redactor), tmp_path)
    assert len(read_metrics(tmp_path)) == 3
    assert good.told("step") == [1, 2, 3] and len(good.told("finish")) == 1
    assert len(good.told("close")) == 1
    if call != "close":
        assert len(bad.told(call)) == 1 and len(bad.told("close")) == 1
        warned = [t for t in good.told("message") if "is off" in str(t)]
        text = f"Witness is off from here on: ConnectionError: no {call} with ***"
        assert warned == [(Level.warning, text)]


def test_a_local_failure_ends_the_run_but_the_others_still_hear_of_the_step(
    tmp_path: Path,
) -> None:
    witness = Witness(tmp_path)
    tracker = Fanout(local(tmp_path, Redactor()), [witness], Redactor())
    tracker.start(tracked_run.info(tmp_path))
    with tracked_run.file_size_limit(20), pytest.raises(TrackingError, match="File too large"):
        tracker.step(StepRecord(step=0, metrics={"reward": 1.0}))
    assert witness.told("step") == [0]
    tracker.finish(Outcome(status=Status.failed, message="disk full", wall_seconds=1.0))
    tracker.close(1.0)
    assert len(witness.told("finish")) == 1


def test_closing_shares_one_deadline(tmp_path: Path) -> None:
    """The last one is closed first."""

    class Slow(Witness):
        def close(self, deadline_s: float) -> None:
            super().close(deadline_s)
            time.sleep(0.4)

    slow = [Slow(tmp_path), Slow(tmp_path)]
    tracker = Fanout(local(tmp_path, Redactor()), slow, Redactor())
    tracker.close(1.0)
    second, first = (float(str(tracker.told("close")[0])) for tracker in slow)
    assert first == pytest.approx(1.0, abs=0.1) and second == pytest.approx(0.6, abs=0.1)


def test_trouble_is_warned_of_once_and_counted_at_the_end(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    tracker = Fanout(local(tmp_path, Redactor()), [witness], Redactor())
    tracker.start(tracked_run.info(tmp_path))
    row = tracked_run.record(0).samples[0]
    flat = [replace(row, sample_index=i) for i in range(4)]
    for step in range(3):
        tracker.step(StepRecord(step=step, metrics={}, samples=flat))
    tracker.finish(Outcome(status=Status.completed, wall_seconds=1.0))
    tracker.close(1.0)
    texts = [str(what[1]) for what in witness.told("message") if isinstance(what, tuple)]
    assert len(texts) == 2
    assert texts[0].startswith("step 0: 1 of 1 groups have equal rewards")
    assert texts[1] == "more than half of the groups had equal rewards in 3 of 3 steps"


def test_what_a_mirror_says_at_its_end_is_shown(tmp_path: Path) -> None:
    class Talker(Witness):
        def close(self, deadline_s: float) -> None:
            logging.getLogger("rlkit.tracking.mirror").warning("the service is off")

    terminal = StringIO()
    console = build_console(TrackerConfig(console=ConsoleMode.plain), terminal)
    tracker = Fanout(local(tmp_path, Redactor()), [console, Talker(tmp_path)], Redactor())
    tracker.start(tracked_run.info(tmp_path))
    tracker.close(1.0)
    assert terminal.getvalue().count("the service is off") == 1
