"""`hydra/launcher=isolated`: the jobs of a sweep on this machine, each in a process of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlkit.config import Config, DeviceChoice
from rlkit.launch import leases
from rlkit.launch.board import Board
from rlkit.launch.devices import GPU, num_cores
from rlkit.launch.live import Live, Stops
from rlkit.launch.nursery import Preload
from rlkit.launch.outcome import JobState, cause_of_death, read_status, settle, state_of
from rlkit.launch.packed import pack
from rlkit.launch.prepare import is_tabular
from rlkit.launch.processes import Event, Exited, Lost, Processes, Refused, Started
from rlkit.launch.rows import Stand
from rlkit.launch.settings import IsolatedConfig, Start
from rlkit.launch.sweep_folder import Job, job_folder
from rlkit.tracking import Status

_TICK_S = 0.2
_MAX_ATTEMPTS = 3
_STANDS = {
    Status.completed: Stand.done,
    Status.failed: Stand.failed,
    Status.interrupted: Stand.interrupted,
}


def run_isolated(
    sweep: Path,
    jobs: Sequence[Job],
    settings: IsolatedConfig,
    board: Board,
    *,
    gpus: Sequence[GPU],
) -> None:
    """Run what is left of the sweep; what became of the jobs is in the board's rows."""
    launch = _Launch(sweep, jobs, settings, board, gpus=gpus, cores=num_cores())
    board.slots = launch.slots
    board.start()
    launch.run()


class _Launch:
    def __init__(
        self,
        sweep: Path,
        jobs: Sequence[Job],
        settings: IsolatedConfig,
        board: Board,
        *,
        gpus: Sequence[GPU],
        cores: int,
    ) -> None:
        self._sweep = sweep
        self._settings = settings
        self._board = board
        self._gpus = gpus
        self._cores = cores
        self._rows = dict(zip((job.id for job in jobs), board.rows, strict=True))
        self._queue: deque[Job] = deque()
        self._live: dict[str, Live] = {}
        self._attempts: Counter[str] = Counter()
        self._stops = Stops(settings)
        self.slots = self._choose_slots(jobs)
        for job in jobs:
            self._enlist(job)

    def run(self) -> None:
        """Run what is left to run; what became of each job is in the board's rows."""
        if not self._queue:
            return
        processes = Processes(preload=self._preload(), log=self._sweep / "launcher.log")
        try:
            with self._stops.hear():
                while self._live or (self._queue and not self._stops.reason):
                    self._start_jobs(processes)
                    for event in processes.events(timeout_s=_TICK_S):
                        self._handle(event)
                    self._stops.enforce(self._live.values(), processes)
                    self._board.refresh()
                    if self._stops.reason and not any(live.pid for live in self._live.values()):
                        return  # the nursery is still importing: no job has begun
        finally:
            for live in list(self._live.values()):
                live.row.stand = Stand.waiting
                self._release(live)
            processes.close()

    def _enlist(self, job: Job) -> None:
        """Queue the job, unless an earlier launch has settled it."""
        row, state = self._rows[job.id], state_of(job_folder(self._sweep, job.id))
        row.look()
        row.first_step = row.step
        if state is JobState.failed:
            row.message = read_status(row.folder).message
        if state is JobState.done:
            row.stand = Stand.earlier
        elif state is JobState.failed and not self._settings.retry_failed:
            row.stand = Stand.failed_earlier
        else:
            self._queue.append(job)

    def _choose_slots(self, jobs: Sequence[Job]) -> int:
        if self._settings.jobs:
            return self._settings.jobs
        if any(self._on_gpu(job.config) for job in jobs):
            return len(self._gpus) * self._settings.jobs_per_gpu
        threads = max((job.config.memory.torch_threads for job in jobs), default=0)
        return max(1, self._cores // max(1, threads))

    def _on_gpu(self, config: Config) -> bool:
        return bool(self._gpus) and config.device is not DeviceChoice.cpu

    def _fresh(self, config: Config) -> bool:
        start = self._settings.start
        return start is Start.fresh or (start is Start.auto and self._on_gpu(config))

    def _preload(self) -> Preload:
        """What the jobs that fork from the nursery have in common."""
        forked = [job.config for job in self._queue if not self._fresh(job.config)]
        if not forked:
            return Preload.nothing
        return Preload.tables if all(map(is_tabular, forked)) else Preload.models

    def _start_jobs(self, processes: Processes) -> None:
        """Fill the free slots, in the order of the sweep."""
        while self._queue and not self._stops.reason and len(self._live) < self.slots:
            job = self._queue[0]
            lease = None
            if self._on_gpu(job.config):
                share = self._settings.jobs_per_gpu
                lease = leases.take(self._gpus, jobs_per_gpu=share, folder=leases.store())
                if lease is None:  # another sweep has them
                    return
            self._queue.popleft()
            self._send(job, lease, processes)

    def _send(self, job: Job, lease: leases.Lease | None, processes: Processes) -> None:
        folder = job_folder(self._sweep, job.id)
        folder.mkdir(parents=True, exist_ok=True)
        environ = {"CUDA_VISIBLE_DEVICES": lease.gpu.name if lease else ""} if self._gpus else {}
        row = self._rows[job.id]
        row.stand, row.began = Stand.running, time.monotonic()
        row.gpu = lease.gpu.label if lease else ""
        self._attempts[job.id] += 1
        self._live[job.id] = Live(job=job, folder=folder, row=row, lease=lease)
        processes.start(
            job.id,
            packed=pack(self._share(job.config, lease, folder)),
            folder=folder.absolute(),
            environ=environ,
            fresh=self._fresh(job.config),
            lease=lease,
        )
        self._board.started(row)

    def _share(self, config: Config, lease: leases.Lease | None, folder: Path) -> Config:
        """The configuration with the job's part of the machine where it leaves that open."""
        memory = config.memory
        resumed = (folder / "config.yaml").exists()  # then it keeps the number it had
        if lease is None and memory.torch_threads == 0 and not resumed:
            # choose_threads would measure a machine that the other jobs keep busy.
            memory = replace(memory, torch_threads=max(1, self._cores // self.slots))
        if lease is not None and self._settings.jobs_per_gpu > 1 and not memory.budget:
            part = lease.gpu.bytes // self._settings.jobs_per_gpu
            memory = replace(memory, budget=str(part) if part else "")
        return replace(config, memory=memory)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Started):
            live = self._live[event.job]
            live.pid, live.row.began = event.pid, time.monotonic()
        elif isinstance(event, Exited):
            live = next(live for live in self._live.values() if live.pid == event.pid)
            live.row.cpu_seconds = event.cpu_seconds
            self._end(live, cause_of_death(live.folder, event.code))
        elif isinstance(event, Refused):
            self._again(self._live[event.job], f"no process for it: {event.reason}")
        elif isinstance(event, Lost):
            for live in list(self._live.values()):
                self._again(live, "its parent process was killed, perhaps for want of memory")

    def _again(self, live: Live, reason: str) -> None:
        """Queue a job once more that lost its process through no fault of its own."""
        if live.stopped or self._attempts[live.job.id] >= _MAX_ATTEMPTS:
            self._end(live, reason)
            return
        live.row.stand = Stand.waiting
        self._release(live)
        self._queue.appendleft(live.job)

    def _end(self, live: Live, reason: str) -> None:
        """Record how a job's process ended; `reason` counts where it did not say so itself."""
        otherwise = Status.interrupted if live.stopped else Status.failed
        message = live.killed or live.stopped or reason
        recorded = settle(live.folder, pid=live.pid, otherwise=otherwise, message=message)
        row = live.row
        row.seconds = time.monotonic() - row.began
        row.stand = _STANDS[recorded.status or Status.failed]
        row.message = recorded.message
        row.look()
        self._release(live)
        self._board.ended(row)
        failures = sum(row.stand is Stand.failed for row in self._rows.values())
        if self._settings.fail_fast and failures >= self._settings.fail_fast:
            self._stops.request(f"{failures} failed (fail_fast={self._settings.fail_fast})")

    def _release(self, live: Live) -> None:
        del self._live[live.job.id]
        if live.lease:
            live.lease.close()
