"""A real run, on a table of logits, leaves its report behind; a real sweep of them can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from warm_cli import Forks

from rlkit.report.load import load_study
from rlkit.report.results import analyse

_RUN = ("model=tabular", "steps=3", "evaluation.every=1", "tracker.metrics_every=1")


def test_a_run_writes_its_report_and_says_where(forks: Forks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    secret = "tracker.console=plain"
    options = [f"run_dir={folder}", "tracker.report=true", secret]
    result = forks.start(*_RUN, *options, cwd=tmp_path).finish(120)
    assert result.returncode == 0, result.stderr
    assert str(folder / "report.html") in result.stdout
    page = (folder / "report.html").read_text()
    evals = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    assert f"Expected reward {evals[0]['mean']:.3f} → {evals[-1]['mean']:.3f}" in page
    about = json.loads((folder / "run.json").read_text())
    assert about["command"].endswith(secret) and f"run_dir={folder}" in about["command"]
    assert about["hardware"]["memory"].endswith("GiB") and about["versions"]["torch"]
    assert about["versions"]["torch"] in page and about["hardware"]["system"] in page


def test_a_report_that_fails_does_not_fail_the_run(forks: Forks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "report.html").mkdir(parents=True)
    options = [f"run_dir={folder}", "resume=auto", "tracker.report=true"]
    result = forks.start(*_RUN, *options, cwd=tmp_path).finish(120)
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "status.json").read_text())["status"] == "completed"
    assert "the report was not written" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_real_sweep_is_read_as_it_was_run(forks: Forks, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    grid = ("kl=none,reverse_k3", "seed=0,1")
    result = forks.start("-m", *_RUN, *grid, f"hydra.sweep.dir={sweep}", cwd=tmp_path).finish(120)
    assert result.returncode == 0, result.stderr
    assert f"rlkit report {sweep}" in result.stdout
    found = analyse(load_study([sweep]))
    assert [row.arm.variant for row in found.rows] == ["kl=none", "kl=reverse_k3"]
    assert [sorted(row.values) for row in found.rows] == [[0, 1], [0, 1]]
    for row in found.rows:
        for seed, job in row.arm.done.items():
            last = json.loads((job.folder / "evals.jsonl").read_text().splitlines()[-1])
            assert row.values[seed] == last["mean"] and row.kls[seed] == last["kl"]
            assert job.steps["samples"][-1] == last["samples"] == 3 * 64
