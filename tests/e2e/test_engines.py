"""Sweeps that another engine schedules: submitit's local executor, for real."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_process import command, environment

from rlkit.tracking import comparable, read_metrics

JOBS = ["model=tabular", "steps=400", "checkpoint.every=10", "evaluation.every=0", "seed=0,1"]
ENGINE = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
ENVIRONMENT = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
_PATIENCE_S = 240.0


def sweep(folder: Path, *options: str) -> subprocess.Popen[str]:
    """`rlkit -m` with the jobs above into `folder`."""
    return subprocess.Popen(
        command("-m", *JOBS, *options, f"hydra.sweep.dir={folder}"),
        cwd=folder.parent,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        mark.parent.name: [comparable(line) for line in read_metrics(mark.parent)]
        for mark in folder.glob("jobs/*/DONE")
    }


def has_checkpoints(folder: Path) -> bool:
    jobs = list(folder.glob("jobs/*"))
    return len(jobs) == 2 and all(list(job.glob("checkpoints/step-*")) for job in jobs)


@pytest.mark.nightly
def test_jobs_of_a_machine_that_went_down_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    first = sweep(tmp_path / "sweep", *ENGINE)
    deadline = time.monotonic() + _PATIENCE_S
    while not has_checkpoints(tmp_path / "sweep"):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    first.communicate()
    psutil.wait_procs(processes, timeout=10)
    assert not metrics(tmp_path / "sweep")
    again = sweep(tmp_path / "sweep", *ENGINE)
    output, _ = again.communicate(timeout=_PATIENCE_S)
    assert again.returncode == 0, output
    assert "2 to run (2 resumed)" in output
    truth = sweep(tmp_path / "truth")
    assert truth.wait(timeout=_PATIENCE_S) == 0
    found = metrics(tmp_path / "sweep")
    assert len(found) == 2 and found == metrics(tmp_path / "truth")
    last = sweep(tmp_path / "sweep", *ENGINE)
    output, _ = last.communicate(timeout=_PATIENCE_S)
    assert last.returncode == 0 and "2 done before" in output
