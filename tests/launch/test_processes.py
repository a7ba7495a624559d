"""The fork server: what the launcher hears of its jobs, and what survives what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlkit.launch.devices import GPU
from rlkit.launch.fork_server import Preload
from rlkit.launch.leases import take
from rlkit.launch.processes import Event, Exited, Lost, Processes, Started

EARLIER: dict[int, list[Event]] = {}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(preload=Preload.nothing, log=tmp_path / "launcher.log")
    yield found
    found.close()


def heard(processes: Processes, kind: type[Event], *, seconds: float = 120) -> Event:
    """The next event, which must be of a kind; later ones of the same moment are kept."""
    deadline = time.monotonic() + seconds
    while not (events := EARLIER.setdefault(id(processes), [])):
        assert time.monotonic() < deadline, f"no {kind.__name__}"
        events += processes.events(timeout_s=0.05)
    event = events.pop(0)
    assert isinstance(event, kind)
    return event


def begin(processes: Processes, folder: Path, *, packed: str = "no JSON") -> int:
    folder.mkdir(exist_ok=True)
    processes.start(folder.name, packed=packed, folder=folder, environ={"A": "1"}, fresh=False)
    event = heard(processes, Started)
    assert isinstance(event, Started) and event.job == folder.name
    return event.pid


def waiting_folder(tmp_path: Path) -> Path:
    """A folder whose job waits for ever, when it opens its output."""
    folder = tmp_path / "job"
    folder.mkdir()
    os.mkfifo(folder / "output.txt")
    return folder


def test_a_job_that_crashes_says_why_in_its_own_file(processes: Processes, tmp_path: Path) -> None:
    pid = begin(processes, tmp_path / "job")
    event = heard(processes, Exited)
    assert isinstance(event, Exited)
    assert (event.pid, event.code) == (pid, 1)
    text = (tmp_path / "job/output.txt").read_text()
    assert text.startswith(f"process {pid} from 20")
    assert "JSONDecodeError" in text.splitlines()[-1]
    assert (tmp_path / "launcher.log").read_text() == ""


def test_signals_reach_a_job_however_young_it_is(processes: Processes, tmp_path: Path) -> None:
    pid = begin(processes, tmp_path / "job")
    processes.signal(pid, signal.SIGINT, group=False)
    event = heard(processes, Exited)
    assert isinstance(event, Exited) and (event.pid, event.code) == (pid, 130)
    processes.signal(pid, signal.SIGKILL, group=True)  # gone: nothing happens
    other = begin(processes, tmp_path / "other")
    processes.signal(other, signal.SIGKILL, group=True)
    event = heard(processes, Exited)
    assert isinstance(event, Exited) and (event.pid, event.code) == (other, -9)


def test_a_dead_fork_server_takes_its_jobs_along_and_is_replaced(
    processes: Processes, tmp_path: Path
) -> None:
    pid = begin(processes, waiting_folder(tmp_path))
    psutil.Process(psutil.Process(pid).ppid()).kill()
    assert isinstance(heard(processes, Lost), Lost)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    begin(processes, tmp_path / "next")
    assert isinstance(heard(processes, Exited), Exited)


def test_a_job_holds_its_lease_without_the_launcher(processes: Processes, tmp_path: Path) -> None:
    card = GPU("sim", "0", 0)
    lease = take([card], jobs_per_gpu=1, folder=tmp_path / "leases")
    assert lease is not None
    folder = waiting_folder(tmp_path)
    processes.start("job", packed="", folder=folder, environ={}, fresh=False, leases=[lease])
    event = heard(processes, Started)
    assert isinstance(event, Started)
    os.close(lease.descriptor)  # as if the launcher had died
    assert take([card], jobs_per_gpu=1, folder=tmp_path / "leases") is None
    processes.signal(event.pid, signal.SIGKILL, group=True)
    heard(processes, Exited)
    assert take([card], jobs_per_gpu=1, folder=tmp_path / "leases") is not None
