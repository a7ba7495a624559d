"""One process at a time holds a run's folder, also where a file system keeps locks to a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlkit.tracking import holding
from rlkit.tracking.holding import Holder, InUse, Pace, cluster_job, hold, holder_of, is_held

QUICK = Pace(beat=0.05, silent=0.4, patience=0.8, glimpse=0.2)
ELSEWHERE = Holder("node7", "another boot", 12, "Slurm job 4_1")
HOLD = """
import sys, time
from pathlib import Path
from rlkit.tracking.holding import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def named(folder: Path, holder: Holder, *, age: float = 0.0) -> Path:
    """The lock file of a holder whose lock this machine does not see."""
    file = folder / ".lock"
    file.write_text(json.dumps(holder._asdict()))
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_a_process_of_this_machine_is_named_and_gone_when_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(InUse, match=rf"^process {process.pid} on "), hold(tmp_path, QUICK):
            pass
        process.kill()
    assert not is_held(tmp_path)
    began = time.monotonic()
    with hold(tmp_path) as notes:  # the lock has gone with its process: no waiting, no doubt
        assert notes == [] and time.monotonic() - began < 1.0
    assert holder_of(tmp_path) is None


def test_a_holder_elsewhere_that_touches_the_file_is_believed(tmp_path: Path) -> None:
    file = named(tmp_path, ELSEWHERE)
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.1):
            file.touch()

    beats = threading.Thread(target=touch)
    beats.start()
    try:
        assert is_held(tmp_path)
        said = r"^process 12 on node7 \(Slurm job 4_1\)$"
        with pytest.raises(InUse, match=said), hold(tmp_path, QUICK):
            pass
    finally:
        over.set()
        beats.join()
    assert holder_of(tmp_path) == ELSEWHERE


@pytest.mark.parametrize(("age", "wait"), [(0.0, 0.4), (100.0, 0.0)])
def test_one_that_is_silent_is_taken_for_dead(tmp_path: Path, age: float, wait: float) -> None:
    named(tmp_path, ELSEWHERE, age=age)
    began = time.monotonic()
    with hold(tmp_path, QUICK) as notes:
        waited = time.monotonic() - began
        assert notes == [f"{ELSEWHERE} held this folder and is taken for dead"]
        held = holder_of(tmp_path)
        assert held is not None and held.pid == os.getpid() and held.is_here
    assert wait - 0.05 <= waited < wait + 0.3
    assert (tmp_path / ".lock").read_text() == ""


def test_the_lock_of_a_silent_machine_is_waited_for_but_not_forever(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        named(tmp_path, ELSEWHERE, age=100.0)  # as if a file server kept its lock
        with pytest.raises(InUse, match="node7"), hold(tmp_path, QUICK):
            pass
        named(tmp_path, ELSEWHERE, age=100.0)
        threading.Timer(0.4, process.kill).start()
        with hold(tmp_path, QUICK) as notes:
            assert len(notes) == 1


def test_who_only_looks_disturbs_nobody(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(look, fcntl.LOCK_UN)).start()
        with hold(tmp_path, QUICK) as notes:
            assert notes == []


def test_a_holder_touches_its_file(tmp_path: Path) -> None:
    with hold(tmp_path, QUICK):
        first = (tmp_path / ".lock").stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / ".lock").stat().st_mtime_ns > first


def test_the_name_of_a_job_is_slurms_own() -> None:
    array = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    assert cluster_job(array) == "Slurm job 7_1"
    assert cluster_job({"SLURM_JOB_ID": "8"}) == "Slurm job 8"
    assert cluster_job({}) == ""


def test_a_name_from_before_a_restart_is_of_another_machine() -> None:
    here = holding.this_process()
    assert here.is_here
    assert not here._replace(boot="").is_here and not here._replace(host="node7").is_here
