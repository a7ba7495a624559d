"""This module runs one training job, from its configuration to its exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from rlkit.assembly.device import choose_threads
from rlkit.assembly.identity import identity_hash
from rlkit.assembly.init_from import started
from rlkit.config import Config, ConfigError
from rlkit.launch.content import Content, check_content, content_of, write_content
from rlkit.launch.environment import hardware, versions
from rlkit.launch.masked import redactor_of
from rlkit.launch.preflight import check_run_dir
from rlkit.launch.prepare import Prepared, prepare
from rlkit.launch.rank_place import leave
from rlkit.launch.ranks import agree, meet, must_be_started, start_ranks
from rlkit.launch.run_folder import check_checkpoints, claim, write_outcome
from rlkit.launch.since import changed_rate, changed_versions, planned_steps
from rlkit.launch.sweep_folder import place_in_sweep
from rlkit.ranks import RankError, Ranks
from rlkit.report.build import write_page
from rlkit.runtime.redact import Redactor
from rlkit.schema import one_line
from rlkit.tracking import (
    Bystander,
    Level,
    Outcome,
    Status,
    Tracker,
    TrackingError,
    build_tracker,
    holes,
    read_evals,
)
from rlkit.training import checkpoint
from rlkit.training.progress import restore
from rlkit.training.stopping import Interrupted, StopRequest, stop_on_signals
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState

EXIT_CODES = {Status.completed: 0, Status.failed: 1, Status.interrupted: 130}
BAD_INPUT = 2
_CLOSE_SECONDS = 25.0
_HURRIED_SECONDS = 2.0

_log = logging.getLogger(__name__)


def run_job(config: Config, *, run_dir: Path) -> int:
    """Train. 0 = completed, 1 = failed, 2 = bad input and nothing written, 130 = interrupted."""
    is_rank = config.gpus > 1 and not must_be_started(config)
    code = exit_code_of(config, run_dir=run_dir)
    if is_rank:
        leave(code)
    return code


def exit_code_of(config: Config, *, run_dir: Path) -> int:
    """Train in this process, or in ranks that it starts, and return the exit code."""
    try:
        if must_be_started(config):
            return start_ranks(config)
        return EXIT_CODES[train_run(config, run_dir=run_dir).status]
    except ConfigError as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return BAD_INPUT
    except (TrackingError, RankError) as error:
        print(f"rlkit: {Redactor.of_process().text(str(error))}", file=sys.stderr)
        return EXIT_CODES[Status.failed]
    except Interrupted as interrupted:
        print(f"rlkit: stopped before training began ({interrupted})", file=sys.stderr)
        return EXIT_CODES[Status.interrupted]


def train_run(config: Config, *, run_dir: Path) -> Outcome:
    """Train in `run_dir` and return how that ended, an error in mid-run included.

    Raises:
        ConfigError: bad input; nothing is written.
        TrackingError: the run folder cannot be written.
        Interrupted: a stop came before training began.
        RankError: another rank failed before training began.
    """
    start = time.monotonic()
    with stop_on_signals() as stop, ExitStack() as resources:
        try:
            with stop.anywhere():
                ranks = meet(config)
                resources.callback(ranks.close)
                prepared, content, changes = _prepare(config, run_dir, ranks)
                resources.callback(prepared.close)
            ranks.together(stop.check)
        except KeyboardInterrupt as signal:
            raise Interrupted(str(signal)) from signal
        config, planned = prepared.config, planned_steps(run_dir)
        agree(ranks, {"config": identity_hash(config), **versions()})
        job = _Job(prepared, stop, ranks, run_dir=run_dir, start=start, planned=planned)
        if ranks.rank != 0:
            return _assist(job)
        with ExitStack() as held:
            # The others wait until the folder is claimed: they write nothing into another run's.
            tracker, notes = ranks.together(partial(_claimed, held, config, run_dir, stop))
            write_content(run_dir, content)
            for note in [*(f"accepted: {change}" for change in changes), *notes]:
                tracker.message(Level.warning, note)
            outcome = _train(job, tracker)
            hidden = one_line(redactor_of(config).text(outcome.message))
            outcome = replace(outcome, message=hidden)
            _finish(config, tracker, stop, outcome, run_dir=run_dir)
            return outcome


class _Job(NamedTuple):
    """This record holds what the training of a job needs, whichever rank it is."""

    prepared: Prepared
    stop: StopRequest
    ranks: Ranks
    run_dir: Path
    start: float
    """Monotonic seconds."""
    planned: int | None
    """Steps that the run in this folder had before."""


def _claimed(
    held: ExitStack, config: Config, run_dir: Path, stop: StopRequest
) -> tuple[Tracker, list[str]]:
    """Claim the folder and open its tracker, both until `held` is closed; lines about it."""
    notes = held.enter_context(claim(config, run_dir))
    return held.enter_context(_tracker(config, run_dir, stop)), notes


def _assist(job: _Job) -> Outcome:
    """Train as a rank that computes its share and writes only a log."""
    job.ranks.share(bytes)  # the first rank claims the folder
    redactor = redactor_of(job.prepared.config)
    tracker = Bystander(job.run_dir, redactor, rank=job.ranks.rank)
    try:
        outcome = _train(job, tracker)
        tracker.finish(outcome)
        return outcome
    finally:
        tracker.close(_CLOSE_SECONDS)


def _prepare(
    config: Config, run_dir: Path, ranks: Ranks
) -> tuple[Prepared, dict[str, Content], list[str]]:
    """Check and load everything, cheapest first; also what files there are and what changed."""
    # All ranks look at the folder before the first one writes into it.
    config, content, changes = ranks.together(partial(_check_folder, config, run_dir, ranks))
    threads = choose_threads(config.memory.torch_threads, run_dir)
    config = replace(config, memory=replace(config.memory, torch_threads=threads))
    torch.set_num_threads(threads)
    say = _say if ranks.rank == 0 else _say_nothing
    prepared = ranks.together(partial(prepare, config, say=say, ranks=ranks))
    return prepared, content, changes


def _check_folder(
    config: Config, run_dir: Path, ranks: Ranks
) -> tuple[Config, dict[str, Content], list[str]]:
    check_run_dir(config)
    config = started(config, say=_say if ranks.rank == 0 else _say_nothing)
    check_checkpoints(config, run_dir)
    content = content_of(config)
    changes = check_content(content, run_dir, accept=config.accept_changed_files)
    return config, content, changes


def _train(job: _Job, tracker: Tracker) -> Outcome:
    """Fit, save what was learnt, and turn whatever happened into an outcome."""
    prepared, run_dir = job.prepared, job.run_dir
    state = prepared.initial_state()
    status, message = Status.completed, ""
    try:
        trainer = prepared.trainer(tracker, job.stop, run_dir=run_dir)
        state = _resume(state, trainer, tracker)
        on_record = job.ranks.share(partial(_labels, job, tracker, state.step))[0]
        state = trainer.fit(state, stop=job.stop, on_record=json.loads(on_record))
        if job.ranks.rank == 0:
            prepared.save(run_dir)
    except Interrupted as interrupted:
        status = Status.interrupted
        message = f"{interrupted} after step {state.step}; resume=auto goes on from there"
    except KeyboardInterrupt as hurry:
        status = Status.interrupted
        message = f"stopped at once ({hurry}); resume=auto goes on from the newest checkpoint"
    except Exception as error:
        # The one place that may catch everything: it logs the traceback and ends the run with 1.
        _log.exception("the run failed")
        status, message = Status.failed, f"{type(error).__name__}: {_cause(error, run_dir)}"
    return Outcome(status=status, message=message, wall_seconds=time.monotonic() - job.start)


def _labels(job: _Job, tracker: Tracker, step: int) -> bytes:
    """Start the tracker of the first rank, whose record of evaluations counts for all, as JSON."""
    return json.dumps(_start(job, tracker, step=step) if job.ranks.rank == 0 else []).encode()


def _start(job: _Job, tracker: Tracker, *, step: int) -> list[str]:
    """Start the tracker; returns the labels of the evaluations on record at `step`."""
    prepared, run_dir = job.prepared, job.run_dir
    config, now = prepared.config, versions()
    notes = changed_versions(run_dir, now) if step else []
    notes += changed_rate(config, planned=job.planned, step=step)
    notes += holes(
        run_dir,
        first_step=step,
        metrics_every=config.tracker.metrics_every,
        evaluate_every=config.evaluation.every,
    )
    info = prepared.info(run_dir=run_dir, versions=now, first_step=step)
    there = hardware(devices=info.device != "cpu")
    place = place_in_sweep(run_dir)
    info = replace(info, group=place.group, title=place.title)
    tracker.start(replace(info, hardware=there, command=shlex.join(sys.argv)))
    for note in notes:
        tracker.message(Level.warning, note)
    return [record.label for record in read_evals(run_dir, samples=False) if record.step == step]


def _finish(
    config: Config, tracker: Tracker, stop: StopRequest, outcome: Outcome, *, run_dir: Path
) -> None:
    """Record how the run ended; then, unless it is to end at once, write what people look at."""
    write_outcome(run_dir, outcome)
    if stop.hurried:
        tracker.message(Level.warning, outcome.message)
        return
    try:
        if config.tracker.report:
            write_page(run_dir)
        tracker.finish(outcome)
    except KeyboardInterrupt:
        tracker.message(Level.warning, "stopped before the curves and the report were complete")


def _resume(state: TrainState, trainer: Trainer, tracker: Tracker) -> TrainState:
    """Return the newest checkpoint of the run folder, if there is one, put into `state`.

    Raises CheckpointError when there are some and all are damaged: step 0 would overwrite a record.
    """
    # To the host: beside the state that it replaces, all weights and moments might not fit.
    saved, problems = checkpoint.load_newest(
        trainer.run_dir / "checkpoints", device=torch.device("cpu")
    )
    for problem in problems:
        tracker.message(Level.warning, f"{problem}; the checkpoint before it is used")
    if saved is None and problems:
        raise checkpoint.CheckpointError(problems[0])
    return state if saved is None else restore(state, saved)


@contextmanager
def _tracker(config: Config, run_dir: Path, stop: StopRequest) -> Iterator[Tracker]:
    tracker = build_tracker(config.tracker, run_dir=run_dir, redactor=redactor_of(config))
    try:
        yield tracker
    finally:
        tracker.close(_HURRIED_SECONDS if stop.hurried else _CLOSE_SECONDS)


def _say(line: str) -> None:
    """Print a line; a terminal that is gone must not end the run."""
    with contextlib.suppress(OSError):
        print(line)


def _say_nothing(_line: str) -> None:
    """Leave it to the first rank, which says the same."""


def _cause(error: Exception, run_dir: Path) -> str:
    """Return one line; an error of the file system that names no file gets the run's folder."""
    line = (str(error).splitlines() or [""])[0]
    nameless = isinstance(error, OSError) and error.errno and error.filename is None
    return f"{line}: below {run_dir}" if nameless else line
