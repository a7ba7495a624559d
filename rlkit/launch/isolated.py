"""`hydra/launcher=isolated` runs a sweep's jobs on this machine, each in a process of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlkit.config import Config, DeviceChoice
from rlkit.launch import leases
from rlkit.launch.devices import GPU, num_cores
from rlkit.launch.fork_server import Preload
from rlkit.launch.outcome import JobState, cause_of_death, read_status, settle, state_of
from rlkit.launch.packed import pack
from rlkit.launch.prepare import is_tabular
from rlkit.launch.processes import Event, Exited, Lost, Processes, Refused, Started
from rlkit.launch.rows import JobStatus
from rlkit.launch.running import RunningJob, SweepStops
from rlkit.launch.settings import IsolatedConfig, Start
from rlkit.launch.sweep_folder import Job, job_folder
from rlkit.launch.sweep_view import SweepView
from rlkit.tracking import Status

_TICK_S = 0.2
_MAX_ATTEMPTS = 3
_STATUS_OF = {
    Status.completed: JobStatus.done,
    Status.failed: JobStatus.failed,
    Status.interrupted: JobStatus.interrupted,
}


def run_isolated(
    sweep: Path,
    jobs: Sequence[Job],
    settings: IsolatedConfig,
    view: SweepView,
    *,
    gpus: Sequence[GPU],
) -> None:
    """Run what is left of the sweep; what became of the jobs is in the view's rows.

    Args:
        sweep: The folder of the sweep.
        jobs: All jobs of the sweep; those that are over are left out.
        settings: The options of the launcher.
        view: Shows the jobs; its rows are in the order of `jobs`.
        gpus: The cards to share out; may be empty.
    """
    launch = _Launch(sweep, jobs, settings, view, gpus=gpus, cores=num_cores())
    view.slots = launch.slots
    view.start()
    launch.run()


class _Launch:
    def __init__(
        self,
        sweep: Path,
        jobs: Sequence[Job],
        settings: IsolatedConfig,
        view: SweepView,
        *,
        gpus: Sequence[GPU],
        cores: int,
    ) -> None:
        self._sweep = sweep
        self._settings = settings
        self._view = view
        self._gpus = gpus
        self._cores = cores
        self._rows = dict(zip((job.id for job in jobs), view.rows, strict=True))
        self._queue: deque[Job] = deque()
        self._running: dict[str, RunningJob] = {}
        self._attempts: Counter[str] = Counter()
        self._stops = SweepStops(settings)
        self.slots = self._choose_slots(jobs)
        for job in jobs:
            self._queue_if_left(job)

    def run(self) -> None:
        """Run what is left to run; what became of each job is in the view's rows."""
        if not self._queue:
            return
        processes = Processes(preload=self._preload(), log=self._sweep / "launcher.log")
        try:
            with self._stops.hear():
                while self._running or (self._queue and not self._stops.reason):
                    self._start_jobs(processes)
                    for event in processes.events(timeout_s=_TICK_S):
                        self._handle(event)
                    self._stops.enforce(self._running.values(), processes)
                    self._view.refresh()
                    if self._stops.reason and not any(run.pid for run in self._running.values()):
                        return  # the fork server is still importing: no job has begun
        finally:
            for run in list(self._running.values()):
                run.row.status = JobStatus.waiting
                self._release(run)
            processes.close()

    def _queue_if_left(self, job: Job) -> None:
        """Queue the job, unless an earlier launch has settled it."""
        row, state = self._rows[job.id], state_of(job_folder(self._sweep, job.id))
        row.read_progress()
        row.first_step = row.step
        if state is JobState.failed:
            row.message = read_status(row.folder).message
        if state is JobState.done:
            row.status = JobStatus.earlier
        elif state is JobState.failed and not self._settings.retry_failed:
            row.status = JobStatus.failed_earlier
        else:
            self._queue.append(job)

    def _choose_slots(self, jobs: Sequence[Job]) -> int:
        if self._settings.jobs:
            return self._settings.jobs
        if any(self._on_gpu(job.config) for job in jobs):
            fewest = min(job.config.gpus for job in jobs)
            return max(1, len(self._gpus) * self._settings.jobs_per_gpu // fewest)
        busy = (max(1, job.config.memory.torch_threads) * job.config.gpus for job in jobs)
        return max(1, self._cores // max(busy, default=1))

    def _on_gpu(self, config: Config) -> bool:
        return bool(self._gpus) and config.device is not DeviceChoice.cpu

    def _fresh(self, config: Config) -> bool:
        start = self._settings.start
        return start is Start.fresh or (start is Start.auto and self._on_gpu(config))

    def _preload(self) -> Preload:
        """Return the modules that all jobs need that fork from the server."""
        forked = [job.config for job in self._queue if not self._fresh(job.config)]
        if not forked:
            return Preload.nothing
        return Preload.tables if all(map(is_tabular, forked)) else Preload.models

    def _start_jobs(self, processes: Processes) -> None:
        """Fill the free slots, in the order of the sweep."""
        while self._queue and not self._stops.reason and len(self._running) < self.slots:
            job = self._queue[0]
            taken = self._cards(job.config)
            if taken is None:  # other jobs or another sweep have them
                return
            self._queue.popleft()
            self._send(job, taken, processes)

    def _cards(self, config: Config) -> tuple[leases.Lease, ...] | None:
        """Return leases of the cards that a job needs; None = not now."""
        if not self._on_gpu(config):
            return ()
        share = self._settings.jobs_per_gpu
        return leases.take_cards(
            self._gpus, count=config.gpus, jobs_per_gpu=share, folder=leases.store()
        )

    def _send(self, job: Job, taken: tuple[leases.Lease, ...], processes: Processes) -> None:
        folder = job_folder(self._sweep, job.id)
        folder.mkdir(parents=True, exist_ok=True)
        cards = ",".join(lease.gpu.name for lease in taken)
        environ = {"CUDA_VISIBLE_DEVICES": cards} if self._gpus else {}
        row = self._rows[job.id]
        row.status, row.began = JobStatus.running, time.monotonic()
        row.gpu = ",".join(lease.gpu.label for lease in taken)
        self._attempts[job.id] += 1
        self._running[job.id] = RunningJob(job=job, folder=folder, row=row, leases=taken)
        processes.start(
            job.id,
            packed=pack(self._share(job.config, taken, folder)),
            folder=folder.absolute(),
            environ=environ,
            fresh=self._fresh(job.config),
            leases=taken,
        )
        self._view.started(row)

    def _share(self, config: Config, taken: Sequence[leases.Lease], folder: Path) -> Config:
        """Return the configuration with the job's part of the machine where it leaves that open."""
        memory = config.memory
        resumed = (folder / "config.yaml").exists()  # then it keeps the number it had
        if not taken and memory.torch_threads == 0 and not resumed:
            # choose_threads would measure a machine that the other jobs keep busy.
            memory = replace(memory, torch_threads=self._threads(config))
        if taken and self._settings.jobs_per_gpu > 1 and not memory.budget:
            part = min(lease.gpu.bytes for lease in taken) // self._settings.jobs_per_gpu
            memory = replace(memory, budget=str(part) if part else "")
        return replace(config, memory=memory)

    def _threads(self, config: Config) -> int:
        """Return the CPU threads of each process of a job."""
        return max(1, self._cores // (self.slots * config.gpus))

    def _handle(self, event: Event) -> None:
        if isinstance(event, Started):
            run = self._running[event.job]
            run.pid, run.row.began = event.pid, time.monotonic()
        elif isinstance(event, Exited):
            run = next(run for run in self._running.values() if run.pid == event.pid)
            run.row.cpu_seconds = event.cpu_seconds
            self._end(run, cause_of_death(run.folder, event.code))
        elif isinstance(event, Refused):
            self._again(self._running[event.job], f"no process for it: {event.reason}")
        elif isinstance(event, Lost):
            for run in list(self._running.values()):
                self._again(run, "its parent process was killed, perhaps for want of memory")

    def _again(self, run: RunningJob, reason: str) -> None:
        """Queue a job once more that lost its process through no fault of its own."""
        if run.stopped or self._attempts[run.job.id] >= _MAX_ATTEMPTS:
            self._end(run, reason)
            return
        run.row.status = JobStatus.waiting
        self._release(run)
        self._queue.appendleft(run.job)

    def _end(self, run: RunningJob, reason: str) -> None:
        """Record how a job's process ended; `reason` counts where it did not say so itself."""
        otherwise = Status.interrupted if run.stopped else Status.failed
        message = run.killed or run.stopped or reason
        recorded = settle(run.folder, pid=run.pid, otherwise=otherwise, message=message)
        row = run.row
        row.seconds = time.monotonic() - row.began
        row.status = _STATUS_OF[recorded.status or Status.failed]
        row.message = recorded.message
        row.read_progress()
        self._release(run)
        self._view.ended(row)
        failures = sum(row.status is JobStatus.failed for row in self._rows.values())
        if self._settings.fail_fast and failures >= self._settings.fail_fast:
            self._stops.request(f"{failures} failed (fail_fast={self._settings.fail_fast})")

    def _release(self, run: RunningJob) -> None:
        del self._running[run.job.id]
        for lease in run.leases:
            lease.close()
