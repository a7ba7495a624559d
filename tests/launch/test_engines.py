"""Other engines: what they need, how their requests reach a job, and what Slurm's queue says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlkit.config import ConfigError
from rlkit.launch.engine_job import _Requests
from rlkit.launch.engines import check_engine, chosen_engine, needed_overrides
from rlkit.launch.outcome import read_status, settle
from rlkit.launch.run_folder import write_status
from rlkit.launch.slurm import SlurmJobs
from rlkit.tracking import Status

RAY = ["hydra/launcher=ray"]
STORE = "hydra.launcher.ray.init.object_store_memory"
# Ends at the n-th SIGINT, n being its argument, with 100 + n.
COUNTS = """
import signal, sys, time
heard = 0
def hear(number, frame):
    global heard
    heard += 1
    if heard == int(sys.argv[1]):
        sys.exit(100 + heard)
signal.signal(signal.SIGINT, hear)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def test_the_last_choice_of_a_launcher_counts() -> None:
    assert chosen_engine(["seed=1"]) == ""
    assert chosen_engine([*RAY, "seed=1", "hydra/launcher=submitit_slurm"]) == "submitit_slurm"


def test_what_an_engine_lacks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine(["hydra/launcher=isolated"])
    if find_spec("ray") is None:
        with pytest.raises(ConfigError, match=r"launcher=ray needs: pip install 'rlkit-lm\[ray\]'"):
            check_engine(RAY)
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    check_engine(["hydra/launcher=submitit_local"])
    with pytest.raises(ConfigError, match=r"Slurm's commands, got none of sbatch, srun, squeue"):
        check_engine(["hydra/launcher=submitit_slurm"])


def test_a_cluster_of_ray_that_exists_is_joined_without_a_size() -> None:
    address = "hydra.launcher.ray.init.address=head:6379"
    assert needed_overrides([*RAY, address], {}) == [f"+{STORE}=null"]
    assert needed_overrides(RAY, {"RAY_ADDRESS": "head:6379"}) == [f"+{STORE}=null"]
    assert needed_overrides([*RAY, address, f"+{STORE}=1000"], {}) == []
    assert needed_overrides(RAY, {}) == []
    assert needed_overrides(["hydra/launcher=submitit_slurm"], {"RAY_ADDRESS": "head:6379"}) == []


@pytest.mark.parametrize(("needs", "hurry_s"), [(1, 0.0), (2, 0.3)])
def test_an_engine_is_answered_after_the_job_has_ended(needs: int, hurry_s: float) -> None:
    answers: list[tuple[int, int | None]] = []
    command = [sys.executable, "-c", COUNTS, str(needs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    before = signal.signal(signal.SIGUSR2, lambda n, _: answers.append((n, process.poll())))
    try:
        requests = _Requests(hurry_s=hurry_s)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with requests.held_back(), requests.passed_on_to(process):
            os.kill(os.getpid(), signal.SIGUSR2)
            began = time.monotonic()
            assert process.wait(timeout=20) == 100 + needs
            assert time.monotonic() - began >= hurry_s - 0.1 and answers == []
        requests.answer()
        assert answers == [(signal.SIGUSR2, 100 + needs)]
        os.kill(os.getpid(), signal.SIGUSR2)  # the engine's own handler is back
        assert len(answers) == 2
    finally:
        process.kill()
        signal.signal(signal.SIGUSR2, before)


def test_signals_without_a_handler_of_the_engine_keep_their_meaning() -> None:
    requests = _Requests(hurry_s=0.0)
    with requests.held_back():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_the_queue_says_which_jobs_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue, queue = tmp_path / "bin" / "squeue", tmp_path / "queue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\ncat {queue}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("rlkit.launch.slurm._ASK_EVERY_S", 0.0)
    (tmp_path / ".submitit" / "3").mkdir(parents=True)
    jobs = SlurmJobs(tmp_path)
    assert jobs.submitted() == set() and jobs.commands() == ""
    (tmp_path / ".submitit" / "12").mkdir()
    (tmp_path / ".submitit" / "12_0").mkdir()
    assert jobs.submitted() == {"12", "12_0"}
    assert jobs.commands() == "squeue -j 12 shows them, scancel 12 ends them"
    assert jobs.are_left()  # the controller is silent: the command has failed
    for text, left in (("3_0\n12_1\n", True), ("3_0\n123\n", False), ("", False)):
        queue.write_text(text)
        assert jobs.are_left() is left
    queue.unlink()
    assert not jobs.are_left()


def test_a_record_of_another_machine_is_not_this_jobs(tmp_path: Path) -> None:
    write_status(tmp_path, Status.completed, message="")
    file = tmp_path / "status.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "host": "node7"}))
    found = settle(tmp_path, pid=os.getpid(), otherwise=Status.failed, message="killed")
    assert found.status is Status.failed and not (tmp_path / "DONE").exists()
    file.write_text(json.dumps({k: v for k, v in record.items() if k != "host"}))  # an older one
    assert read_status(tmp_path).is_by(os.getpid())
    settle(tmp_path, pid=os.getpid(), otherwise=Status.failed, message="killed")
    assert (tmp_path / "DONE").exists()
