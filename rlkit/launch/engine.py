"""Another engine schedules the sweeps of `hydra/launcher=ray`, `submitit_local`, `submitit_slurm`.

Hydra's plugins bring jobs to machines, and this module brings rlkit's rules to the plugins. Only
jobs that are not done are submitted. On its machine a job is a process of its own, started in the
folder that its configuration names, from its newest checkpoint. The cause of its death is written
down. The sweep folder must be on a file system that all machines see.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from rlkit.config import load
from rlkit.launch.birth import boot
from rlkit.launch.hydra_compat import Callbacks
from rlkit.launch.outcome import JobState, cause_of_death, read_status, settle, state_of
from rlkit.launch.packed import pack
from rlkit.launch.preflight import in_sweep
from rlkit.launch.rows import OVER, JobRow, JobStatus
from rlkit.launch.run_folder import write_status
from rlkit.launch.sweep_folder import Job, job_folder, job_id
from rlkit.launch.sweep_view import SweepView
from rlkit.report.job import is_held
from rlkit.tracking import Status

_LOOK_S = 1.0


def engine_job(composed: DictConfig) -> int:
    """Run the job in a process of its own: a plugin calls this on the job's machine. Never raises.

    The exit code of the job; 0 when there is nothing left to do.
    """
    config = in_sweep(load(composed))
    hydra = HydraConfig.get()
    folder = job_folder(Path(hydra.sweep.dir), job_id(config))
    if state_of(folder) in (JobState.done, JobState.failed):
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(hydra.runtime.cwd)
    process = subprocess.Popen(
        boot("rlkit.launch.child", str(folder), str(os.getpid())),
        stdin=subprocess.PIPE,
        cwd=here if here.is_dir() else None,
        text=True,
    )
    process.communicate(pack(config))
    code = process.returncode
    reason = cause_of_death(folder, code)
    settle(folder, pid=process.pid, otherwise=Status.failed, message=reason)
    return code


def run_on_engine(
    sweep: Path,
    jobs: Sequence[Job],
    hydra_overrides: Sequence[str],
    view: SweepView,
    *,
    retry: bool,
) -> None:
    """Submit what is left of the sweep to the plugin that `hydra_overrides` choose, and wait.

    What became of the jobs is in the view's rows. A plugin that gives up is reported, not raised:
    its jobs may still run, and the next launch finds what they did.

    Args:
        sweep: The folder of the sweep.
        jobs: All jobs of the sweep; those that are over are left out.
        hydra_overrides: Overrides of Hydra that choose the plugin.
        view: Shows the jobs; its rows are in the order of `jobs`.
        retry: Whether jobs that failed before run again.
    """
    left = [job for job in jobs if _queue_if_left(sweep, job, _row(view, jobs, job), retry=retry)]
    view.start()
    if not left:
        return
    for job in left:
        job_folder(sweep, job.id).mkdir(parents=True, exist_ok=True)
    quoted = str(sweep.absolute()).replace("'", r"\'")
    overrides = [*hydra_overrides, f"hydra.sweep.dir='{quoted}'"]
    with initialize_config_module("rlkit.conf", version_base="1.3"), _watching(view):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        master = hydra.compose_config("config", overrides, RunMode.MULTIRUN, from_shell=False)
        HydraConfig.instance().set_config(master)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=engine_job, config=master
        )
        try:
            launcher.launch([list(job.overrides) for job in left], initial_job_idx=0)
        except Exception as error:
            # Whatever a plugin raises, its jobs have their own records.
            text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            print(f"rlkit: the launcher gave up waiting: {text}", file=sys.stderr)


def _row(view: SweepView, jobs: Sequence[Job], job: Job) -> JobRow:
    return view.rows[jobs.index(job)]


def _queue_if_left(sweep: Path, job: Job, row: JobRow, *, retry: bool) -> bool:
    """Return whether the job is to be submitted."""
    folder = job_folder(sweep, job.id)
    state = state_of(folder)
    row.read_progress()
    row.first_step = row.step
    if state is JobState.failed and retry:
        write_status(folder, Status.interrupted, message="to be run again (retry_failed)")
        state = JobState.partial
    if state is JobState.done:
        row.status = JobStatus.earlier
    if state is JobState.failed:
        row.status = JobStatus.failed_earlier
        row.message = read_status(folder).message
    return state in (JobState.new, JobState.partial)


@contextmanager
def _watching(view: SweepView) -> Iterator[None]:
    """Keep the view's rows up to date from the folders of the jobs, until the launcher returns."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            _read_folders(view)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _read_folders(view)
        _report_dead(view)


def _report_dead(view: SweepView) -> None:
    """Jobs that ended without a word on their machine: out of time, or killed."""
    for row in view.rows:
        if row.status is JobStatus.running and not is_held(row.folder):
            row.seconds = row.elapsed()
            row.status = JobStatus.interrupted
            row.message = "its process is gone; the same command again goes on"
            view.ended(row)
    view.refresh()


def _read_folders(view: SweepView) -> None:
    for row in view.rows:
        if row.status in OVER:
            continue
        status = read_status(row.folder).status
        state = state_of(row.folder)
        if status is Status.running and row.status is JobStatus.waiting:
            row.status, row.began = JobStatus.running, time.monotonic()
            view.started(row)
        elif state in (JobState.done, JobState.failed):
            row.seconds = row.elapsed()
            row.status = JobStatus.done if state is JobState.done else JobStatus.failed
            row.message = read_status(row.folder).message
            row.read_progress()
            view.ended(row)
    view.refresh()
