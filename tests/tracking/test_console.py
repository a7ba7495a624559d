"""What a user sees, as text: live and plain, at 80 and 140 columns, hostile completions."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tracked_run
from rich.console import Console

from rlkit.tracking import Level, Outcome, Phase, Redactor, Status, StepRecord
from rlkit.tracking.columns import columns, count, fit, fixed, percent, seconds, small, split
from rlkit.tracking.console import LiveConsole, PlainConsole
from rlkit.tracking.local import LocalTracker
from rlkit.tracking.printable import PrintableTracker
from rlkit.tracking.summary import clip, printable, sparkline

_DONE = Outcome(status=Status.completed, wall_seconds=75.0)


def terminal(width: int, *, height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@contextmanager
def plain(*, quiet: bool = False) -> Iterator[tuple[PlainConsole, Console]]:
    console = Console(file=io.StringIO(), width=120)
    tracker = PlainConsole(console, quiet=quiet)
    try:
        yield tracker, console
    finally:
        tracker.close(1.0)


def frame(run_dir: Path, *, width: int, height: int = 40, steps: int = 12) -> list[str]:
    """The live view after `steps` steps, in the middle of generation, as lines."""
    tracker = LiveConsole(terminal(width, height=height), table_steps=12)
    tracker.start(tracked_run.info(run_dir, num_steps=20))
    try:
        for step in range(steps):
            tracker.step(tracked_run.record(step))
        tracker.progress(Phase.generate, 31, 48)
        still = Console(width=width, height=height, color_system=None, file=io.StringIO())
        still.print(tracker.render())
    finally:
        tracker.close(1.0)
    return written(still).splitlines()


def header_of(lines: list[str]) -> list[str]:
    return next(line for line in lines if line.startswith("step")).split()


def test_wide_live_view_shows_every_column(tmp_path: Path) -> None:
    lines = frame(tmp_path, width=140)
    assert header_of(lines) == [
        "step",
        "reward",
        "correctness",
        "tag_format",
        "std",
        "KL",
        "length",
        "no-std",
        "grad",
        "tok/s",
        "time",
        "generate/reward/score/update/sync",
        "memory",
    ]
    row = next(line for line in lines if line.startswith("   7"))
    assert row.split() == [
        "7",
        "1.427",
        "0.938",
        "0.490",
        "0.29",
        "0.0741",
        "5.5",
        "17%",
        "0.337",
        "125",
        "17.6s",
        "52/0/13/34/0%",
        "1.9GiB",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_no_line_is_wider_than_the_terminal_and_no_row_is_wrapped(
    tmp_path: Path, width: int
) -> None:
    lines = frame(tmp_path, width=width)
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line[:4].strip().isdigit()]
    assert [int(row[:4]) for row in rows] == list(range(12))
    assert len({len(row) for row in rows}) == 1
    assert not any("loss" in line for line in lines)


def test_narrow_live_view_moves_what_it_drops_to_the_details(tmp_path: Path) -> None:
    lines = frame(tmp_path, width=80)
    head = header_of(lines)
    assert head[:3] == ["step", "reward", "correctness"]
    assert {"std", "KL", "length", "no-std", "grad", "tok/s"} <= set(head)
    text = " ".join(lines)
    assert "generate 52%" in text and "sync 0%" in text
    assert "tag_format 0.479" in text and "memory 1.9GiB" in text and "signal 0.71" in text
    assert "12/20" in text and "31/48" in text


def test_small_terminal_shows_fewer_rows(tmp_path: Path) -> None:
    lines = frame(tmp_path, width=80, height=20)
    assert len(lines) <= 20
    assert [line[:4].strip() for line in lines if line[:4].strip().isdigit()] == [
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
    ]


def test_live_view_before_the_first_step_and_of_a_record_without_metrics(tmp_path: Path) -> None:
    assert any("0/20" in line for line in frame(tmp_path, width=80, steps=0))
    tracker = LiveConsole(terminal(80), table_steps=3)
    tracker.start(tracked_run.info(tmp_path))
    tracker.step(StepRecord(step=0, metrics={}))
    tracker.finish(_DONE)
    tracker.close(1.0)
    tracker.close(1.0)


def test_time_left_is_the_median_step_times_the_steps_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("rlkit.tracking.console.time.monotonic", lambda: now[0])
    tracker = LiveConsole(terminal(80), table_steps=3)
    tracker._info = tracked_run.info(tmp_path, num_steps=10)
    for phase, took in ((Phase.evaluate, 50.0), (Phase.generate, 0.0)):
        now[0] += took
        tracker.progress(phase, 0, 1)
    for step, took in enumerate((10.0, 12.0, 90.0)):  # the evaluation is not part of step 0
        now[0] += took
        tracker.step(tracked_run.record(step))
    assert list(tracker._durations) == [10.0, 12.0, 90.0]
    now[0] += 4.0
    assert tracker._time_left(7, now[0]) == "1m20s"  # 7 x 12 - 4
    assert tracker._time_left(0, now[0]) == ""


def test_plain_output_is_one_aligned_line_a_step_with_a_header_now_and_then(
    tmp_path: Path,
) -> None:
    with plain() as (tracker, console):
        tracker.start(tracked_run.info(tmp_path, num_steps=25))
        for step in range(25):
            tracker.progress(Phase.generate, 1, 2)
            tracker.step(tracked_run.record(step))
    lines = written(console).splitlines()
    assert lines[0] == "rlkit grpo on echo · SmolLM2-135M-Instruct · cpu float32 (no GPU)"
    heads = [i for i, line in enumerate(lines) if line.startswith("step")]
    assert heads == [2, 23]
    assert len({len(line) for line in lines[2:]}) == 1
    assert len(lines) == 2 + 25 + 2


def test_quiet_shows_warnings_and_results_only(tmp_path: Path) -> None:
    with plain(quiet=True) as (tracker, console):
        tracker.start(replace(tracked_run.info(tmp_path), warnings=("old driver",)))
        tracker.step(tracked_run.record(0))
        tracker.evaluation(tracked_run.evaluation("before", 0, rate=0.2))
        tracker.message(Level.info, "saved")
        tracker.finish(_DONE)
    text = written(console)
    assert text.startswith("warning: old driver\ncompleted in 1m15s\n")
    assert "saved" not in text and "0.203" in text


def test_results_compare_before_and_after_on_the_same_prompts(tmp_path: Path) -> None:
    with plain() as (tracker, console):
        tracker.start(tracked_run.info(tmp_path))
        tracker.evaluation(tracked_run.evaluation("before", 0, rate=0.2))
        tracker.evaluation(tracked_run.evaluation("step 6", 6, rate=0.5))
        tracker.evaluation(tracked_run.evaluation("after", 12, rate=0.97))
        tracker.finish(_DONE)
    text = written(console)
    cells = [[c.strip() for c in line.split("│")[1:4]] for line in text.splitlines() if "│" in line]
    assert cells[:3] == [
        ["before", "0.203", "[0.133, 0.273]"],
        ["after", "0.984", "[0.961, 1.000]"],
        ["change", "+0.781", "[+0.703, +0.852]"],
    ]
    for prompt in (1000, 1001, 1002):
        assert text.count(f"held-out prompt {prompt} ") == 1
    assert "held-out prompt 1003" not in text
    assert "before (reward 0.00, 59 tokens)" in text and "after (reward 1.50, 5 tokens)" in text
    assert "[bold]'w1000'[/bold]" in text  # a completion is no markup
    assert str(tmp_path) in text


def test_a_resumed_run_still_compares_with_its_start(tmp_path: Path) -> None:
    local = LocalTracker(tmp_path, Redactor(), completions=True, plot=False)
    local.start(tracked_run.info(tmp_path))
    local.evaluation(tracked_run.evaluation("before", 0, rate=0.2))
    local.close(1.0)
    with plain() as (tracker, console):
        tracker.start(tracked_run.info(tmp_path, first_step=6))
        tracker.evaluation(tracked_run.evaluation("after", 12, rate=0.97))
        tracker.finish(_DONE)
    text = written(console)
    assert "change" in text and "before (reward 0.00, 59 tokens)" in text


@pytest.mark.parametrize("status", [Status.interrupted, Status.failed])
def test_a_run_that_did_not_complete_says_so(tmp_path: Path, status: Status) -> None:
    with plain() as (tracker, console):
        tracker.start(tracked_run.info(tmp_path))
        tracker.finish(Outcome(status=status, message="Ctrl-C", wall_seconds=3.0))
    assert f"{status.value} in 3.0s: Ctrl-C" in written(console)


def test_messages_may_come_before_the_start(tmp_path: Path) -> None:
    console = terminal(80)
    live = LiveConsole(console, table_steps=3)
    live.message(Level.warning, "checkpoint 7 is damaged")
    live.start(tracked_run.info(tmp_path))
    live.finish(Outcome(status=Status.failed, message="no space", wall_seconds=0.5))
    live.close(1.0)
    text = written(console)
    assert text.startswith("warning: checkpoint 7 is damaged\n")
    assert "failed in 0.50s: no space" in text


def test_hostile_text_cannot_steer_the_terminal() -> None:
    hostile = "a\x1b[2J\x1b]0;title\x07\r\nb\x9b31m\u202ecod\x7f\tz"
    shown = printable(hostile)
    assert shown == "a␛[2J␛]0;title␇\nb\ufffd31m\ufffdcod␡\tz"
    assert printable("ü 漢 🙂 العربية") == "ü 漢 🙂 العربية"


def test_clip_says_what_it_left_out() -> None:
    assert clip("") == "(empty)"
    assert clip(" \n") == "(empty: ' \\n')"
    assert clip("ok") == "ok"
    assert clip("x" * 620) == "x" * 500 + " … (+120 characters)"
    assert clip("a\n" * 30) == "\n".join("a" * 10) + " … (+41 characters)"


def test_sparkline_scales_pools_and_skips() -> None:
    assert sparkline([0.0, 0.5, 1.0], width=10).plain == "reward  ▁▅█  0.000 → 1.000"
    assert sparkline([1.0, 1.0], width=10).plain == "reward  ▁▁  1.000 → 1.000"
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2).plain == "reward  ▁█  0.000 → 1.000"
    assert sparkline([0.0, float("nan"), 1.0], width=10).plain == "reward  ▁ █  0.000 → 1.000"
    assert sparkline([float("nan")], width=10).plain == "reward  no finite value yet"
    assert len(sparkline([float(i) for i in range(1000)], width=40).plain.split()[1]) == 40


def test_numbers_are_short() -> None:
    assert [small(v) for v in (0.0, 8.34e-5, 0.01234, 123.4, 12345.0, -3e-5, None)] == [
        "0",
        "8.3e-05",
        "0.0123",
        "123",
        "1.2e+04",
        "-3e-05",
        "–",
    ]
    assert [small(float(v)) for v in ("nan", "inf")] == ["nan", "inf"]
    assert [fixed(v) for v in (0.5, -12.25, 123456.0, None)] == [
        "0.500",
        "-12.250",
        "1.23e+05",
        "–",
    ]
    assert [count(v) for v in (812.4, 1900.0, 24000.0, 1.2e6, None)] == [
        "812",
        "1.9k",
        "24k",
        "1.2M",
        "–",
    ]
    assert [seconds(v) for v in (0.342, 12.3, 185.0, 7800.0, None)] == [
        "0.34s",
        "12.3s",
        "3m05s",
        "2h10m",
        "–",
    ]
    assert percent(0.256) == "26%" and percent(float("nan")) == "–"
    assert split({"time/step": 4.0, "time/generate": 2.0, "time/update": 1.0}) == "50/–/–/25/–%"


def test_fit_drops_the_least_important_column_first() -> None:
    everything = columns([f"reward_{i}" for i in range(5)])
    titles = [[c.title for c in fit(everything, width)] for width in (200, 80, 30, 1)]
    assert len(titles[0]) == len(everything)
    assert {"memory", "time", "generate/reward/score/update/sync", "reward_4"}.isdisjoint(titles[1])
    assert titles[1][:3] == ["step", "reward", "reward_0"]
    assert titles[2] == ["step", "reward", "KL", "length"]
    assert titles[3] == ["step", "reward"]


def test_warnings_of_other_libraries_are_shown_once(tmp_path: Path) -> None:
    with plain() as (tracker, console):
        tracker.start(tracked_run.info(tmp_path))
        logging.getLogger("rlkit.models").warning("slow %s", "attention")
        logging.getLogger("rlkit.run").warning("shown by Tracker.message already")
        logging.getLogger("rlkit.models").info("chatter")
    logging.getLogger("rlkit.models").warning("too late")
    text = written(console)
    assert text.count("warning: slow attention") == 1
    assert not any(word in text for word in ("already", "chatter", "too late"))


_SCRIPT = """
import pathlib, sys
import tracked_run
from rlkit.tracking import Outcome, Redactor, Status, StepRecord, TrackerConfig, build_tracker
run_dir = pathlib.Path(sys.argv[1])
tracker = build_tracker(TrackerConfig(plot=False), run_dir=run_dir, redactor=Redactor())
tracker.start(tracked_run.info(run_dir, num_steps=300))
for step in range(300):
    tracker.step(StepRecord(step=step, metrics={"reward": 0.5}))
tracker.finish(Outcome(status=Status.completed, wall_seconds=1.0))
tracker.close(5.0)
sys.stderr.write("ended well")
"""


def python(run_dir: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    """`rlkit | head -1`."""
    process = python(tmp_path, {})
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"ended well"
    assert process.wait(30) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 300


def test_an_ascii_terminal_does_not_end_the_run(tmp_path: Path) -> None:
    process = python(tmp_path, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"ended well")
    assert b"run folder" in out and b"is off" not in out


HOSTILE = "\x1b]0;pwned\x07\x1b[2J\x1b[31mred\x9b32m\x1bPq\x1b\\\r\x08\u202e[bold]x[/bold]"
_ONLY_HOSTILE = ("\x1b]", "\x1b[2J", "\x1b[31m", "\x9b", "\x1bP", "\x07", "\x08", "\u202e")


@pytest.mark.parametrize("live", [True, False])
def test_hostile_names_and_texts_reach_no_terminal(tmp_path: Path, live: bool) -> None:
    """Every text that a run is told, in the live table and in the plain one."""
    console = terminal(120)
    tracker = PrintableTracker(
        LiveConsole(console, table_steps=3) if live else PlainConsole(console, quiet=False)
    )
    told = tracked_run.info(tmp_path, num_steps=4)
    tracker.message(Level.warning, HOSTILE)
    tracker.start(
        replace(
            told,
            name=HOSTILE,
            task=HOSTILE,
            model=HOSTILE,
            algorithm=HOSTILE,
            device=HOSTILE,
            title=HOSTILE,
            dtype_reason=HOSTILE,
            reward_names=(HOSTILE, "b"),
        )
    )
    for step in range(4):
        made = tracked_run.record(step)
        samples = [
            replace(row, prompt=HOSTILE, completion=HOSTILE, columns={HOSTILE: HOSTILE})
            for row in made.samples
        ]
        metrics = {**made.metrics, f"rewards/{HOSTILE}/mean": 0.5}
        tracker.progress(Phase.generate, 1, 2)
        tracker.step(StepRecord(step=step, metrics=metrics, samples=samples))
        tracker.message(Level.error, HOSTILE)
    judged = tracked_run.evaluation("after", 4, rate=0.5)
    tracker.evaluation(replace(judged, label=HOSTILE))
    tracker.finish(Outcome(status=Status.failed, message=HOSTILE, wall_seconds=1.0))
    tracker.close(1.0)
    shown = written(console)
    assert "pwned" in shown, "it must have been shown"
    assert [text for text in _ONLY_HOSTILE if text in shown] == []
