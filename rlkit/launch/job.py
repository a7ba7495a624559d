"""This module runs one training job, from its configuration to its exit code."""

from __future__ import annotations

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
from rlkit.config import Config, ConfigError, Resume
from rlkit.launch.content import Content, check_content, content_of, write_content
from rlkit.launch.environment import hardware, versions
from rlkit.launch.masked import redactor_of
from rlkit.launch.outcome import cause
from rlkit.launch.preflight import check_run_dir
from rlkit.launch.prepare import Prepared, prepare
from rlkit.launch.rank_place import leave
from rlkit.launch.ranks import agree, meet, must_be_started, start_ranks
from rlkit.launch.run_folder import check_checkpoints, claim, write_outcome
from rlkit.launch.since import by_the_clock, changed_rate, changed_versions, planned_steps
from rlkit.launch.sweep_folder import place_in_sweep
from rlkit.ranks import RankError, Ranks
from rlkit.report.build import write_page
from rlkit.runtime.say import printed, unheard
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
from rlkit.training.progress import resumed
from rlkit.training.stopping import Interrupted, StopRequest, stop_on_signals
from rlkit.types import GeneratorDied

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
        print(f"rlkit: {redactor_of(config).text(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except (TrackingError, RankError) as error:
        print(f"rlkit: {redactor_of(config).text(str(error))}", file=sys.stderr)
        return EXIT_CODES[Status.failed]
    except Interrupted as interrupted:
        print(f"rlkit: stopped before training began ({interrupted})", file=sys.stderr)
        return EXIT_CODES[Status.interrupted]


def train_run(config: Config, *, run_dir: Path) -> Outcome:
    """Train in `run_dir` and return how that ended, an error in mid-run included.

    Where the generator died, the run goes on once from its newest checkpoint, with a new generator.

    Raises:
        ConfigError: bad input; nothing is written.
        TrackingError: the run folder cannot be written.
        Interrupted: a stop came before training began.
        RankError: another rank failed before training began.
    """
    # Several ranks would all have to begin again.
    outcome, died = _attempt(config, run_dir, last=config.gpus > 1)
    if not died:
        return outcome
    printed(outcome.message)
    try:
        return _attempt(replace(config, resume=Resume.auto), run_dir, last=True)[0]
    except Interrupted:
        raise
    except Exception as error:  # the device itself may be lost: another process may go on
        _log.exception("no new generator could be started")
        message = f"{outcome.message}, in vain: {type(error).__name__}: {cause(error, run_dir)}"
        message = one_line(redactor_of(config).text(message))
        outcome = replace(outcome, status=Status.failed, message=message)
        write_outcome(run_dir, outcome)
        return outcome


def _attempt(config: Config, run_dir: Path, *, last: bool) -> tuple[Outcome, bool]:
    """Train; also return whether the generator died and may be started once more."""
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
        job = _Job(prepared, stop, ranks, run_dir=run_dir, start=start, planned=planned, last=last)
        if ranks.rank != 0:
            return _assist(job), False
        with ExitStack() as held:
            # The others wait until the folder is claimed: they write nothing into another run's.
            tracker, notes = ranks.together(partial(_claimed, held, config, run_dir, stop))
            write_content(run_dir, content)
            for note in [*(f"accepted: {change}" for change in changes), *notes]:
                tracker.message(Level.warning, note)
            outcome, died = _train(job, tracker)
            hidden = one_line(redactor_of(config).text(outcome.message))
            outcome = replace(outcome, message=hidden)
            _finish(config, tracker, stop, outcome, run_dir=run_dir)
            return outcome, died


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
    last: bool
    """Whether a generator that dies ends the run."""


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
        outcome, _ = _train(job, tracker)
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
    say = printed if ranks.rank == 0 else unheard
    prepared = ranks.together(partial(prepare, config, say=say, ranks=ranks))
    return prepared, content, changes


def _check_folder(
    config: Config, run_dir: Path, ranks: Ranks
) -> tuple[Config, dict[str, Content], list[str]]:
    check_run_dir(config)
    config = started(config, say=printed if ranks.rank == 0 else unheard)
    check_checkpoints(config, run_dir)
    content = content_of(config)
    changes = check_content(content, run_dir, accept=config.accept_changed_files)
    return config, content, changes


def _train(job: _Job, tracker: Tracker) -> tuple[Outcome, bool]:
    """Fit, save what was learnt, and turn whatever happened into an outcome.

    Also return whether the generator died and may be started once more.
    """
    prepared, run_dir = job.prepared, job.run_dir
    state = prepared.initial_state()
    status, message, died = Status.completed, "", False
    try:
        trainer = prepared.trainer(tracker, job.stop, run_dir=run_dir)
        state = resumed(state, run_dir, warn=partial(tracker.message, Level.warning))
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
        status, message = Status.failed, f"{type(error).__name__}: {cause(error, run_dir)}"
        died = isinstance(error, GeneratorDied) and not job.last
        if died:
            status, message = Status.interrupted, f"{error}; it is started once more"
    seconds = time.monotonic() - job.start
    return Outcome(status=status, message=message, wall_seconds=seconds), died


def _labels(job: _Job, tracker: Tracker, step: int) -> bytes:
    """Start the tracker of the first rank, whose record of evaluations counts for all, as JSON."""
    return json.dumps(_start(job, tracker, step=step) if job.ranks.rank == 0 else []).encode()


def _start(job: _Job, tracker: Tracker, *, step: int) -> list[str]:
    """Start the tracker; returns the labels of the evaluations on record at `step`."""
    prepared, run_dir = job.prepared, job.run_dir
    config, now = prepared.config, versions()
    notes = changed_versions(run_dir, now) if step else []
    notes += changed_rate(config, planned=job.planned, step=step)
    notes += by_the_clock(config, step=step)
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


@contextmanager
def _tracker(config: Config, run_dir: Path, stop: StopRequest) -> Iterator[Tracker]:
    tracker = build_tracker(config.tracker, run_dir=run_dir, redactor=redactor_of(config))
    try:
        yield tracker
    finally:
        tracker.close(_HURRIED_SECONDS if stop.hurried else _CLOSE_SECONDS)
