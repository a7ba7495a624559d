"""Sweeps as a user meets them: real launchers, real jobs, and what disturbs them."""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_process import environment
from sweep_kills import NUM_JOBS, campaign
from warm_cli import Forks, Run

TINY = ["-m", "model=tabular", "steps=20", "evaluation.every=0", "checkpoint.every=5"]
ENVIRONMENT = {**environment(), "CUDA_VISIBLE_DEVICES": ""}


def start(forks: Forks, folder: Path, *arguments: str) -> Run:
    return forks.start(*TINY, *arguments, cwd=folder, env=ENVIRONMENT)


def folders(sweep: Path) -> dict[str, Path]:
    """Job folders by their overrides, as `sweep.json` lists them."""
    record = json.loads((sweep / "sweep.json").read_text())
    return {" ".join(job["overrides"]): sweep / job["folder"] for job in record["jobs"]}


def status(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "status.json").read_text())
    return found


def stamps(sweep: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in sweep.glob("jobs/*/**/*") if f.is_file()}


@pytest.mark.slow
def test_the_same_command_again_skips_what_is_done_and_retries_only_when_asked(
    forks: Forks, tmp_path: Path
) -> None:
    grid = ["device=cpu,cuda", "seed=0,1"]
    first = start(forks, tmp_path, *grid).finish()
    assert first.returncode == 1, first.stdout + first.stderr
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert re.fullmatch(r"tabular-[0-9a-f]{8}", sweep.name)
    record = json.loads((sweep / "sweep.json").read_text())
    assert record["version"] == 1 and record["name"] == sweep.name
    assert record["command"][:2] == ["rlkit", "-m"]
    assert datetime.fromisoformat(record["created"]).tzinfo is not None
    jobs = folders(sweep)
    assert len(jobs) == 4
    assert all(re.fullmatch(r"jobs/[0-9a-f]{12}", job["folder"]) for job in record["jobs"])
    for name, job in jobs.items():
        good = "device=cpu" in name
        assert (job / "DONE").exists() is good
        assert status(job)["status"] == ("completed" if good else "failed")
        if not good:
            assert status(job)["message"].startswith("exit code 2: device must be")
    assert first.stdout.count("exit code 2: device must be") == 4  # as it fails, in the table
    before = stamps(sweep)
    again = start(forks, tmp_path, *grid).finish()
    assert again.returncode == 1
    assert "2 done before" in again.stdout and "2 failed before" in again.stdout
    assert stamps(sweep) == before
    retried = start(forks, tmp_path, *grid, "hydra.launcher.retry_failed=true").finish()
    assert retried.returncode == 1
    after = stamps(sweep)
    touched = {f.parent for f in after if after[f] != before.get(f)}
    assert touched == {job for name, job in jobs.items() if "device=cuda" in name}


@pytest.mark.slow
def test_killed_and_hanging_jobs_fail_alone(forks: Forks, tmp_path: Path) -> None:
    process = start(
        forks,
        tmp_path,
        "steps=200",
        "seed=0,1,2",
        "hydra.sweep.dir=sweep",
        "hydra.launcher.jobs=3",
        "hydra.launcher.stall_minutes=0.4",
    )
    sweep = tmp_path / "sweep"
    victims: dict[int, int] = {}
    deadline = time.monotonic() + 120
    while len(victims) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
        for name, job in folders(sweep).items() if (sweep / "sweep.json").exists() else ():
            seed = int(name[-1])
            steps = job / "metrics.jsonl"
            if seed < 2 and seed not in victims and steps.exists() and steps.stat().st_size:
                victims[seed] = status(job)["pid"]
                number = signal.SIGKILL if seed == 0 else signal.SIGSTOP
                psutil.Process(victims[seed]).send_signal(number)
    ended = process.finish()
    assert ended.returncode == 1
    jobs = {int(name[-1]): job for name, job in folders(sweep).items()}
    assert status(jobs[0])["status"] == "failed"
    assert status(jobs[0])["message"].startswith("killed by SIGKILL")
    assert status(jobs[1])["status"] == "failed"
    assert "no sign of life for 0.4 minutes" in status(jobs[1])["message"]
    assert (jobs[2] / "DONE").exists()
    assert not psutil.pid_exists(victims[1])
    assert f"see sweep/jobs/{jobs[0].name}/log.txt" in ended.stdout + ended.stderr


@pytest.mark.slow
def test_fail_fast_leaves_the_rest_for_the_next_launch(forks: Forks, tmp_path: Path) -> None:
    result = start(
        forks,
        tmp_path,
        "device=cuda,cpu",
        "seed=0,1",
        "hydra.sweep.dir=sweep",
        "hydra.launcher.jobs=1",
        "hydra.launcher.fail_fast=1",
    ).finish()
    assert result.returncode == 1
    assert "3 waiting" in result.stdout and "1 failed" in result.stdout
    assert len(list((tmp_path / "sweep/jobs").iterdir())) == 1


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_gpus_without_clash(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path))  # where the leases are
    # Cards that exist by name only: the jobs are told them and find no CUDA.
    options = ["hydra.launcher.gpus=[sim-0,sim-1]", "hydra.launcher.start=warm"]
    jobs = ["device=auto", "seed=0,1,2,3", *options]
    both = [
        start(forks, tmp_path, *jobs, "kl=none", "hydra.sweep.dir=a"),
        start(forks, tmp_path, *jobs, "kl=reverse_k3", "hydra.sweep.dir=b"),
    ]
    for process in both:
        ended = process.finish()
        assert ended.returncode == 0, ended.stdout + ended.stderr
    spans: dict[str, list[tuple[float, float]]] = {"sim-0": [], "sim-1": []}
    for job in [*folders(tmp_path / "a").values(), *folders(tmp_path / "b").values()]:
        line = (job / "output.txt").read_text().splitlines()[0]
        began, gpu = re.findall(r"from (\S+), CUDA_VISIBLE_DEVICES=(\S+)", line)[0]
        span = (datetime.fromisoformat(began).timestamp(), status(job)["time"])
        spans[gpu].append(span)
    assert sum(map(len, spans.values())) == 8 and all(spans.values())
    for taken in spans.values():
        for (_, end), (begin, _) in itertools.pairwise(sorted(taken)):
            assert end <= begin
    assert not list(tmp_path.glob("rlkit-*/gpu/*/*.lease"))


@pytest.mark.slow
def test_a_second_launcher_of_the_same_sweep_is_refused(forks: Forks, tmp_path: Path) -> None:
    first = start(forks, tmp_path, "seed=0,1", "hydra.sweep.dir=sweep")
    deadline = time.monotonic() + 120
    while not (tmp_path / "sweep/sweep.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start(forks, tmp_path, "seed=0,1", "hydra.sweep.dir=sweep").finish()
    assert second.returncode == 2
    assert second.stderr == "rlkit: the sweep in sweep is being run by another process\n"
    ended = first.finish()
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_killed_launchers_lose_nothing_and_leave_nothing_behind(
    forks: Forks, tmp_path: Path
) -> None:
    tally = campaign(3, forks=forks, folder=tmp_path, seed=1)
    assert sum(tally.kills.values()) == 3
    assert tally.finished_jobs_touched == 0
    assert tally.orphans == 0
    assert tally.jobs_that_differ == 0
    assert tally.jobs_not_done == 0
    assert NUM_JOBS == 8
