"""This is a job's side of a sweep that another engine schedules, on the machine of the job.

The job is a process of its own, started in the folder that its configuration names, from its newest
checkpoint. The cause of its death is written down. What the engine asks of it, such as to make room
before a time limit, is answered once the job has saved.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlkit.config import Config, load
from rlkit.launch.birth import INTERRUPTED, boot
from rlkit.launch.outcome import JobState, cause_of_death, settle, state_of
from rlkit.launch.packed import pack
from rlkit.launch.preflight import in_sweep
from rlkit.launch.sweep_folder import job_folder, job_id
from rlkit.tracking import Status
from rlkit.tracking.holding import cluster_job, holder_of, is_held

_ASKS_TO_END = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_BAD_INPUT = 2
_LOOK_S = 2.0
_SLURM_KILLS_WITHIN_S = 300.0
"""Slurm queues a job again that makes room for another one only if it had to kill it. One that ends
in its time of grace is over for Slurm. So a job that was asked by SIGTERM waits to be killed."""
_TIME_TO_SAVE = 0.75
"""The part of the time before an engine's limit in which a job may finish what it is at."""


def engine_job(composed: DictConfig) -> int:
    """Run the job in a process of its own: a plugin calls this on the job's machine.

    A job that another process runs is waited for: Slurm starts a job again whose machine it has
    lost, while the first process may live. The exit code of the job; 0 when nothing is left to do.
    """
    config = in_sweep(load(composed))
    hydra = HydraConfig.get()
    folder = job_folder(Path(hydra.sweep.dir), job_id(config))
    folder.mkdir(parents=True, exist_ok=True)
    notice_s = float(hydra.launcher.get("signal_delay_s") or 0.0)
    requests = _Requests(hurry_s=_TIME_TO_SAVE * notice_s)
    with requests.held_back():
        while True:
            _wait_for_others(folder, requests)
            if requests.heard or _is_over(folder):
                code = INTERRUPTED if requests.heard else 0
                break
            code = _run(config, folder, Path(hydra.runtime.cwd), requests)
            if code != _BAD_INPUT or not is_held(folder):  # unless another one was faster
                break
    if not _is_over(folder):
        requests.answer()
    return code


def _is_over(folder: Path) -> bool:
    return state_of(folder) in (JobState.done, JobState.failed)


def _wait_for_others(folder: Path, requests: _Requests) -> None:
    said = False
    while is_held(folder) and not requests.heard:
        if not said:
            print(f"rlkit: waits for {holder_of(folder) or 'another process'}", flush=True)
            said = True
        time.sleep(_LOOK_S)


def _run(config: Config, folder: Path, here: Path, requests: _Requests) -> int:
    """Start the process of the job, wait for its end and record it where it could not itself."""
    process = subprocess.Popen(
        boot("rlkit.launch.child", str(folder), str(os.getpid())),
        stdin=subprocess.PIPE,
        cwd=here if here.is_dir() else None,
        text=True,
    )
    with requests.passed_on_to(process):
        process.communicate(pack(config))
    code, reason = process.returncode, cause_of_death(folder, process.returncode)
    status = Status.interrupted if requests.heard else Status.failed
    settle(folder, pid=process.pid, otherwise=status, message=reason)
    return code


class _Requests:
    """Requests to end are signals that the engine has handlers for; they wait for the job."""

    def __init__(self, *, hurry_s: float) -> None:
        self.heard: list[int] = []
        self._hurry_s = hurry_s
        """Seconds after which a job that was asked once is to end at once; 0 = never."""
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Collect the signals that the engine handles; Python hears them in its main thread only.

        Slurm signals all processes of a job, so the job may have heard the same one already.
        """
        if threading.current_thread() is threading.main_thread():
            for number in _ASKS_TO_END:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hear)
        try:
            yield
        finally:
            for heard, before in self._handlers.items():
                signal.signal(heard, before)

    @contextmanager
    def passed_on_to(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Ask `process` to save and end when the engine asks for that."""
        self._process = process
        if self.heard:  # while it was being started
            self._ask()
        try:
            yield
        finally:
            self._process = None
            if self._timer is not None:
                self._timer.cancel()

    def answer(self) -> None:
        """Let the engine's own handlers answer, which may requeue the job and end this process."""
        for number in dict.fromkeys(self.heard):
            self._handlers[number](number, None)
        if signal.SIGTERM in self.heard and cluster_job(os.environ):
            time.sleep(_SLURM_KILLS_WITHIN_S)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)
        self._ask()

    def _ask(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        if self._hurry_s and self._timer is None:
            self._timer = threading.Timer(
                self._hurry_s, self._process.send_signal, (signal.SIGINT,)
            )
            self._timer.daemon = True
            self._timer.start()
