"""This module runs one training job, from its configuration to its exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from rlkit.assembly.device import choose_threads
from rlkit.assembly.init_from import started
from rlkit.config import Config, ConfigError, flatten
from rlkit.launch.content import check_content, content_of, write_content
from rlkit.launch.environment import hardware, versions
from rlkit.launch.preflight import check_run_dir
from rlkit.launch.prepare import Prepared, prepare
from rlkit.launch.run_folder import claim, write_outcome
from rlkit.launch.sweep_folder import place_in_sweep
from rlkit.report.build import write_page
from rlkit.tracking import Level, Outcome, Redactor, Status, Tracker, TrackingError, build_tracker
from rlkit.training import checkpoint
from rlkit.training.restore import restore
from rlkit.training.stopping import Interrupted, StopRequest, stop_on_signals
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState

EXIT_CODES = {Status.completed: 0, Status.failed: 1, Status.interrupted: 130}
BAD_INPUT = 2
_CLOSE_SECONDS = 25.0

_log = logging.getLogger(__name__)


def run_job(config: Config, *, run_dir: Path) -> int:
    """Train. 0 = completed, 1 = failed, 2 = bad input and nothing written, 130 = interrupted."""
    try:
        return EXIT_CODES[train_run(config, run_dir=run_dir).status]
    except ConfigError as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return BAD_INPUT
    except TrackingError as error:
        print(f"rlkit: {error}", file=sys.stderr)
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
    """
    start = time.monotonic()
    with stop_on_signals() as stop:
        check_run_dir(config)
        config = started(config, say=print)
        content = content_of(config)
        changes = check_content(content, run_dir, accept=config.accept_changed_files)
        config = _with_threads(config, run_dir)
        torch.set_num_threads(config.memory.torch_threads)
        with closing(prepare(config, say=print)) as prepared:
            stop.check()
            config = prepared.config
            with claim(config, run_dir), _tracker(config, run_dir) as tracker:
                write_content(run_dir, content)
                for change in changes:
                    tracker.message(Level.warning, f"accepted: {change}")
                outcome = _train(prepared, tracker, stop, run_dir=run_dir, start=start)
                write_outcome(run_dir, outcome)
                if config.tracker.report:
                    write_page(run_dir)
                tracker.finish(outcome)
                return outcome


def _with_threads(config: Config, run_dir: Path) -> Config:
    """Return a copy with the number of CPU threads that the run computes with."""
    threads = choose_threads(config.memory.torch_threads, run_dir)
    return replace(config, memory=replace(config.memory, torch_threads=threads))


def _train(
    prepared: Prepared, tracker: Tracker, stop: StopRequest, *, run_dir: Path, start: float
) -> Outcome:
    """Fit, save what was learnt, and turn whatever happened into an outcome."""
    state = prepared.initial_state()
    trainer = prepared.trainer(tracker, stop, run_dir=run_dir)
    status, message = Status.completed, ""
    try:
        state = _resume(state, trainer, tracker)
        info = prepared.info(run_dir=run_dir, versions=versions(), first_step=state.step)
        there = hardware(devices=info.device != "cpu")
        place = place_in_sweep(run_dir)
        info = replace(info, group=place.group, title=place.title)
        tracker.start(replace(info, hardware=there, command=shlex.join(sys.argv)))
        state = trainer.fit(state, stop=stop)
        prepared.save(run_dir)
    except Interrupted as interrupted:
        status = Status.interrupted
        message = f"{interrupted} after step {state.step}; resume=auto goes on from there"
    except Exception as error:
        # The one place that may catch everything: it logs the traceback and ends the run with 1.
        _log.exception("the run failed")
        status, message = Status.failed, f"{type(error).__name__}: {_first_line(error)}"
    return Outcome(status=status, message=message, wall_seconds=time.monotonic() - start)


def _resume(state: TrainState, trainer: Trainer, tracker: Tracker) -> TrainState:
    """Return the newest checkpoint of the run folder, if there is one, put into `state`."""
    # To the host: beside the state that it replaces, all weights and moments might not fit.
    saved, problems = checkpoint.load_newest(
        trainer.run_dir / "checkpoints", device=torch.device("cpu")
    )
    for problem in problems:
        tracker.message(Level.warning, problem)
    return state if saved is None else restore(state, saved)


@contextmanager
def _tracker(config: Config, run_dir: Path) -> Iterator[Tracker]:
    redactor = Redactor.collect(environ=os.environ, argv=sys.argv, config=flatten(config))
    tracker = build_tracker(config.tracker, run_dir=run_dir, redactor=redactor)
    try:
        yield tracker
    finally:
        tracker.close(_CLOSE_SECONDS)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
