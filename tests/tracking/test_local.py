"""The run folder: exact resume, completions, evaluations, the log, and full disks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tracked_run

from rlkit.tracking import (
    Level,
    Outcome,
    Redactor,
    Status,
    TrackingError,
    comparable,
    read_evals,
    read_metrics,
    read_samples,
)
from rlkit.tracking.completions import step_path, write_samples
from rlkit.tracking.files import read_lines
from rlkit.tracking.local import LocalTracker


def open_run(
    run_dir: Path, *, first_step: int = 0, redactor: Redactor | None = None
) -> LocalTracker:
    tracker = LocalTracker(run_dir, redactor or Redactor(), completions=True, plot=False)
    tracker.start(tracked_run.info(run_dir, num_steps=4, first_step=first_step))
    return tracker


def run(run_dir: Path, steps: Sequence[int], *, evals: Sequence[tuple[str, int]] = ()) -> None:
    tracker = open_run(run_dir, first_step=steps[0])
    for label, step in evals:
        if step <= steps[0]:
            tracker.evaluation(tracked_run.evaluation(label, step, rate=0.3))
    for step in steps:
        tracker.step(tracked_run.record(step))
    for label, step in evals:
        if step > steps[0]:
            tracker.evaluation(tracked_run.evaluation(label, step, rate=0.8))
    tracker.close(1.0)


def deterministic(run_dir: Path) -> tuple[object, ...]:
    files = sorted((run_dir / "completions").iterdir())
    return (
        [comparable(line) for line in read_lines(run_dir / "metrics.jsonl")],
        [comparable(line) for line in read_lines(run_dir / "evals.jsonl")],
        [(file.name, file.read_bytes()) for file in files],
    )


def test_two_halves_equal_one_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", range(4), evals=[("before", 0), ("after", 4)])
    run(tmp_path / "halves", range(2), evals=[("before", 0)])
    run(tmp_path / "halves", range(2, 4), evals=[("after", 4)])
    assert deterministic(tmp_path / "halves") == deterministic(tmp_path / "whole")


def test_resume_forgets_everything_after_the_checkpoint(tmp_path: Path) -> None:
    """Killed in step 3 with a torn line and an evaluation done; the checkpoint is of step 2."""
    run(tmp_path / "whole", range(4), evals=[("before", 0), ("after", 4)])
    killed = tmp_path / "killed"
    run(killed, range(4), evals=[("before", 0), ("step 3", 3), ("after", 4)])
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"reward": 0.3, "st')
    for leftover in (killed / "completions").glob("eval-[sa]*"):
        leftover.unlink()
    run(killed, range(2, 4), evals=[("after", 4)])
    assert deterministic(killed) == deterministic(tmp_path / "whole")


def test_resume_drops_samples_of_steps_that_are_redone(tmp_path: Path) -> None:
    run(tmp_path, range(4))
    open_run(tmp_path, first_step=1).close(1.0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]
    assert [p.name for p in (tmp_path / "completions").iterdir()] == ["step-000000.parquet"]


def test_resume_keeps_the_evaluation_of_the_policy_it_goes_on_from(tmp_path: Path) -> None:
    run(tmp_path, range(4), evals=[("before", 0), ("step 2", 2), ("step 3", 3)])
    open_run(tmp_path, first_step=2).close(1.0)
    assert [record.label for record in read_evals(tmp_path)] == ["before", "step 2"]


def test_every_metric_is_kept_exactly(tmp_path: Path) -> None:
    record = tracked_run.record(0)
    odd = {**record.metrics, "kl": math.nan, "grad_norm": math.inf, "reward": 0.1 + 0.2}
    tracker = open_run(tmp_path)
    tracker.step(replace(record, metrics=odd))
    tracker.close(1.0)
    [line] = read_metrics(tmp_path)
    assert math.isnan(line.pop("kl")) and line.pop("time/unix") > 1.7e9
    assert line == {k: v for k, v in odd.items() if k != "kl"} | {"step": 0}


def test_completions_are_one_column_a_field(tmp_path: Path) -> None:
    rows = list(tracked_run.record(3).samples)
    rows[0] = replace(rows[0], completion="", components=(math.nan, 2.5), advantage=None)
    rows[1] = replace(rows[1], completion="a\ud800\x00\u202e🙂\n", reward=-math.inf)
    path = step_path(tmp_path, 3)
    path.parent.mkdir()
    write_samples(path, rows, tracked_run.REWARDS)
    table = pq.read_table(path)
    assert table.column_names == [
        "step",
        "prompt_index",
        "sample_index",
        "prompt",
        "completion",
        "finish_reason",
        "num_tokens",
        "rewards/correctness",
        "rewards/tag_format",
        "reward",
        "advantage",
        "task/answer",
    ]
    assert table.column("rewards/tag_format").to_pylist() == [r.components[1] for r in rows]
    back = read_samples(path)
    assert back[2:] == rows[2:]
    assert math.isnan(back[0].components[0]) and back[0].components[1] == 2.5
    assert back[0].advantage is None and back[0].completion == ""
    assert back[1].completion == "a?\x00\u202e🙂\n" and back[1].reward == -math.inf


def test_evaluations_are_read_back_with_samples(tmp_path: Path) -> None:
    before = tracked_run.evaluation("before", 0, rate=0.2)
    middle = tracked_run.evaluation("step 2", 2, rate=0.6)
    tracker = open_run(tmp_path)
    for record in (before, before, middle):  # said twice, kept once
        tracker.evaluation(record)
    tracker.close(1.0)
    assert read_evals(tmp_path) == [before, middle]


def test_lost_metrics_end_the_run_and_leave_whole_lines(tmp_path: Path) -> None:
    tracker = open_run(tmp_path)
    tracker.step(tracked_run.record(0))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with (
        tracked_run.file_size_limit(size + 50),
        pytest.raises(TrackingError, match=r"metrics\.jsonl: File too large"),
    ):
        tracker.step(replace(tracked_run.record(1), samples=()))
    tracker.close(1.0)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size


def test_lost_completions_are_said_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_run(tmp_path)
    (tmp_path / "completions").rmdir()
    (tmp_path / "completions").touch()
    for step in range(3):
        tracker.step(tracked_run.record(step))
    tracker.close(1.0)
    assert len(read_metrics(tmp_path)) == 3
    assert sum("completions are not kept" in r.getMessage() for r in caplog.records) == 1


def test_a_full_disk_silences_the_log_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    tracker = open_run(tmp_path)
    tracker.message(Level.warning, "hello")
    tracker.step(tracked_run.record(0))
    tracker.close(1.0)
    assert len(read_metrics(tmp_path)) == 1
    assert "Logging error" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match=r"cannot make .*: Not a directory"):
        LocalTracker(tmp_path / "file" / "run", Redactor(), completions=True, plot=False)


def test_the_log_has_tracebacks_and_foreign_warnings_but_no_secret(tmp_path: Path) -> None:
    canary = "hf_canary123456"
    root = logging.getLogger()
    handlers, level = list(root.handlers), logging.getLogger("rlkit").level
    tracker = open_run(tmp_path, redactor=Redactor([canary]))
    try:
        raise ValueError(f"401 for https://me:pw@hub/x?token={canary}")
    except ValueError:
        logging.getLogger("rlkit.models").exception("download failed")
    logging.getLogger("urllib3").warning("retry with %s", canary)
    logging.getLogger("urllib3").info("chatter")
    tracker.finish(Outcome(status=Status.failed, message="stopped", wall_seconds=1.0))
    tracker.close(1.0)
    tracker.close(1.0)
    logging.getLogger("rlkit.models").warning("after the end")
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback (most recent call last)" in text and "ERROR   rlkit.models" in text
    assert "urllib3: retry with ***" in text and "https://***@hub/x?token=***" in text
    assert canary not in text and "me:pw" not in text
    assert "chatter" not in text and "after the end" not in text
    assert root.handlers == handlers and logging.getLogger("rlkit").level == level


def test_resume_appends_to_the_log(tmp_path: Path) -> None:
    run(tmp_path, range(2))
    run(tmp_path, range(2, 4))
    assert (tmp_path / "log.txt").read_text().count("run echo-seed0: grpo on echo") == 2
