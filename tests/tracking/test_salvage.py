"""Damaged records of a run: what is whole stays, and every hole is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tracked_run

from rlkit.tracking import (
    ConsoleMode,
    Redactor,
    TrackerConfig,
    build_tracker,
    holes,
    read_evals,
    read_metrics,
)
from rlkit.tracking.completions import eval_path, step_path
from rlkit.tracking.salvage import whole_evals, whole_metrics

_QUIET = TrackerConfig(console=ConsoleMode.quiet, plot=False)


def recorded(run_dir: Path, *, steps: int = 6, num_steps: int = 12) -> Path:
    """The folder of a run that recorded `steps` steps and evaluated after every second one."""
    tracker = build_tracker(_QUIET, run_dir=run_dir, redactor=Redactor())
    tracker.start(tracked_run.info(run_dir, num_steps=num_steps))
    tracker.evaluation(tracked_run.evaluation("before", 0, rate=0.1, num_prompts=4))
    for step in range(steps):
        tracker.step(tracked_run.record(step))
        if step % 2 and step + 1 < num_steps:
            evaluation = tracked_run.evaluation(f"step {step + 1}", step + 1, rate=0.5)
            tracker.evaluation(evaluation)
    if steps == num_steps:
        tracker.evaluation(tracked_run.evaluation("after", steps, rate=0.9))
    tracker.close(5.0)
    return run_dir


def go_on(run_dir: Path, *, first_step: int, num_steps: int = 12) -> None:
    tracker = build_tracker(_QUIET, run_dir=run_dir, redactor=Redactor())
    tracker.start(tracked_run.info(run_dir, num_steps=num_steps, first_step=first_step))
    tracker.close(5.0)


def said(run_dir: Path, first_step: int = 6) -> list[str]:
    return holes(run_dir, first_step=first_step, metrics_every=1, evaluate_every=2)


def test_a_whole_record_has_no_holes(tmp_path: Path) -> None:
    assert said(recorded(tmp_path)) == []
    assert said(tmp_path, first_step=0) == []


@pytest.mark.parametrize("noise", ["{", "\0\0", "3", '{"step": "x"}', '{"step": 2, "loss": [1]}'])
def test_a_line_of_noise_is_dropped_and_said(tmp_path: Path, noise: str) -> None:
    file = recorded(tmp_path) / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], noise, *lines[3:]]) + "\n")
    assert said(tmp_path) == [
        "metrics.jsonl: 1 lines cannot be read and are dropped; the run goes on",
        "metrics.jsonl has a hole, it lacks steps 2; the run goes on",
    ]
    go_on(tmp_path, first_step=6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 3, 4, 5]


def test_a_record_that_was_cut(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "evals.jsonl"):
        file = recorded(tmp_path / name) / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    metrics, evals = said(tmp_path / "metrics.jsonl"), said(tmp_path / "evals.jsonl")
    assert metrics == ["metrics.jsonl has a hole, it lacks steps 3-5; the run goes on"]
    assert len(evals) == 1 and "evals.jsonl has a hole, it lacks evaluations" in evals[0]
    assert "step 4" in evals[0] and "step 6" not in evals[0]  # which is made again
    go_on(tmp_path / "evals.jsonl", first_step=6)
    assert read_evals(tmp_path / "evals.jsonl")[0].label == "before"


def test_records_that_are_gone(tmp_path: Path) -> None:
    recorded(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "evals.jsonl").unlink()
    first, second = said(tmp_path)
    assert "it lacks steps 0-5" in first and "it lacks evaluations before, step 2, step 4" in second
    assert whole_metrics(tmp_path) == whole_evals(tmp_path) == ([], 0)


def test_the_last_evaluation_of_a_shorter_run_becomes_one_in_between(tmp_path: Path) -> None:
    recorded(tmp_path, steps=6, num_steps=6)
    go_on(tmp_path, first_step=6)
    assert [record.label for record in read_evals(tmp_path)] == [
        *("before", "step 2", "step 4", "step 6")
    ]
    last = read_evals(tmp_path)[-1]
    assert last.samples and eval_path(tmp_path, "step 6", 6).exists()
    assert not eval_path(tmp_path, "after", 6).exists()
    go_on(tmp_path, first_step=6, num_steps=6)


def test_samples_of_what_comes_again_are_deleted(tmp_path: Path) -> None:
    recorded(tmp_path)
    assert step_path(tmp_path, 5).exists() and eval_path(tmp_path, "step 4", 4).exists()
    go_on(tmp_path, first_step=3)
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == [
        "eval-before-000000.parquet",
        "eval-step-2-000002.parquet",
        *(f"step-{step:06d}.parquet" for step in range(3)),
    ]
    labels = [json.loads(line)["label"] for line in (tmp_path / "evals.jsonl").open()]
    assert labels == ["before", "step 2"]
