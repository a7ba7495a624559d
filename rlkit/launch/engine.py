"""Another engine schedules the sweeps of `hydra/launcher=ray`, `submitit_local`, `submitit_slurm`.

Hydra's plugins bring jobs to machines, and this module brings rlkit's rules to the plugins. Only
jobs that are not done, and that no process is at, are submitted. `engine_job` is what runs there.
The sweep folder must be on a file system that all machines see.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode

from rlkit.config import ConfigError
from rlkit.launch.code_of_jobs import CodeOfJobs, ContextWithCode
from rlkit.launch.engine_job import engine_job
from rlkit.launch.engines import SLURM, chosen_engine, needed_overrides
from rlkit.launch.hydra_compat import Callbacks
from rlkit.launch.outcome import JobState, read_status, state_of
from rlkit.launch.rows import OVER, JobRow, JobStatus
from rlkit.launch.run_folder import write_status
from rlkit.launch.slurm import SlurmJobs
from rlkit.launch.sweep_folder import Job, job_folder
from rlkit.launch.sweep_view import SweepView
from rlkit.tracking import Status
from rlkit.tracking.holding import holder_of, is_held

_LOOK_S = 1.0


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
    for job in left:
        job_folder(sweep, job.id).mkdir(parents=True, exist_ok=True)
    with _watching(view):
        if left:
            launch = _plugin(sweep, left, hydra_overrides)
            if chosen_engine(hydra_overrides) == SLURM:
                _wait_for_slurm(launch, SlurmJobs(sweep), view)
            else:
                _report(launch())
        while any(row.status is JobStatus.running and is_held(row.folder) for row in view.rows):
            time.sleep(_LOOK_S)  # jobs of an earlier launch, or of a plugin that gave up


def _plugin(
    sweep: Path, left: Sequence[Job], hydra_overrides: Sequence[str]
) -> Callable[[], Exception | None]:
    """Return a function that submits the jobs, waits for them and returns why that failed."""
    quoted = str(sweep.absolute()).replace("'", r"\'")
    more = needed_overrides(hydra_overrides, os.environ)
    overrides = [*hydra_overrides, *more, f"hydra.sweep.dir='{quoted}'"]

    def launch() -> Exception | None:
        with initialize_config_module("rlkit.conf", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            master = hydra.compose_config("config", overrides, RunMode.MULTIRUN, from_shell=False)
            HydraConfig.instance().set_config(master)
            named = {str(fn) for job in left if (fn := getattr(job.config.algorithm, "fn", ""))}
            code = CodeOfJobs(str(Path.cwd()), sorted(named))
            context = ContextWithCode(code, hydra.config_loader, Callbacks(master))
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=engine_job, config=master
            )
            try:
                launcher.launch([list(job.overrides) for job in left], initial_job_idx=0)
            except Exception as error:
                # Whatever a plugin raises, its jobs have their own records.
                return error
        return None

    return launch


def _report(error: Exception | None) -> None:
    if error is not None:
        print(f"rlkit: the launcher gave up waiting: {_one_line(error)}", file=sys.stderr)


def _one_line(error: Exception | None) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _wait_for_slurm(
    launch: Callable[[], Exception | None], jobs: SlurmJobs, view: SweepView
) -> None:
    """Submit the jobs in a thread, and wait until Slurm's queue has none of them.

    The plugin waits for results. It gives up on all jobs when one was cancelled, and where Slurm
    keeps no accounts it waits for that one for ever. So its waiting is left alone, not waited for.
    """
    ended: list[Exception | None] = []
    thread = threading.Thread(target=lambda: ended.append(launch()), daemon=True)
    thread.start()
    said = False
    try:
        while (thread.is_alive() and not jobs.submitted()) or (
            jobs.submitted() and jobs.are_left()
        ):
            if not said and (commands := jobs.commands()):
                said = True
                view.say(f"submitted to Slurm: {commands}")
            if all(row.status in OVER for row in view.rows):
                break
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        if commands := jobs.commands():
            view.say(f"the jobs go on in Slurm: {commands}; the same command again watches them")
        raise
    if not jobs.submitted() and ended:
        raise ConfigError(f"Slurm took no job of the sweep: {_one_line(ended[0])}")


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
    if state in (JobState.new, JobState.partial) and is_held(folder):
        row.status, row.began = JobStatus.running, time.monotonic()
        row.message = f"at work already: {holder_of(folder) or 'another process'}"
        return False
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
