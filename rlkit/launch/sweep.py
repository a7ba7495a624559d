"""`rlkit -m` needs a checked plan, a folder that knows its jobs, and a launcher to run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from rlkit.assembly.inputs import check_inputs
from rlkit.checks.refusal import checked
from rlkit.config import ConfigError, DeviceChoice
from rlkit.launch.content import (
    Content,
    check_content,
    code_files,
    content_of,
    named_files,
    read_content,
)
from rlkit.launch.devices import GPU, find_gpus
from rlkit.launch.engine import run_on_engine
from rlkit.launch.isolated import run_isolated
from rlkit.launch.preflight import LaunchPlan
from rlkit.launch.prepare import is_tabular
from rlkit.launch.rows import FAILED, JobRow, JobStatus, labels
from rlkit.launch.settings import BoardMode, IsolatedConfig
from rlkit.launch.sweep_folder import hold, job_folder, sweep_name, write_sweep
from rlkit.launch.sweep_view import SweepView
from rlkit.tracking.build import Terminal

_AUTO = "auto"
_PIPE_WIDTH = 160
_FAILED, _INTERRUPTED = 1, 130


def run_sweep(plan: LaunchPlan, arguments: Sequence[str]) -> int:
    """Run what is left of `plan`: 0 = all are done now, 1 = one failed, 130 = stopped.

    Raises ConfigError with one line when the sweep cannot start.
    """
    assert plan.hydra is not None
    choices = plan.hydra.runtime.choices
    if (sweeper := choices.get("hydra/sweeper")) != "basic":
        raise ConfigError(f"hydra/sweeper must be basic: grids are expanded first, got {sweeper}")
    sweep = sweep_folder_of(plan)
    settings = _settings(plan.hydra) if choices.get("hydra/launcher") == "isolated" else None
    gpus = _gpus(settings) if settings else []
    if settings:
        _check_cards(plan, gpus)
    _check_inputs(plan)
    with hold(sweep):
        _check_content(plan, sweep)
        rows = _rows(plan, sweep)
        write_sweep(sweep, name=sweep.name, command=["rlkit", *arguments], jobs=plan.jobs)
        console = Terminal(file=sys.stdout)
        if not console.is_terminal:
            console = Terminal(file=sys.stdout, width=_PIPE_WIDTH)
        console.print(f"sweep {sweep}", soft_wrap=True, highlight=False)
        mode = settings.board if settings else BoardMode.plain  # other launchers print as well
        live = mode is BoardMode.live or (mode is BoardMode.auto and console.is_terminal)
        view = SweepView(console, rows, live=live)
        try:
            if settings:
                run_isolated(sweep, plan.jobs, settings, view, gpus=gpus)
            else:
                overrides, retry = plan.hydra_overrides, plan.retry_failed
                run_on_engine(sweep, plan.jobs, overrides, view, retry=retry)
        finally:
            view.close()
        console.print(f"report: rlkit report {sweep}", soft_wrap=True, highlight=False)
    return exit_code(rows)


def sweep_folder_of(plan: LaunchPlan) -> Path:
    """Return `hydra.sweep.dir`; its default names the experiment or task and the set of jobs."""
    assert plan.hydra is not None
    chosen = str(plan.hydra.sweep.dir)
    return Path("sweeps") / sweep_name(plan.label, plan.jobs) if chosen == _AUTO else Path(chosen)


def exit_code(rows: Sequence[JobRow]) -> int:
    """Return the exit code of the worst job: failed comes first, then not done."""
    if any(row.status in FAILED for row in rows):
        return _FAILED
    unfinished = any(row.status not in (JobStatus.done, JobStatus.earlier) for row in rows)
    return _INTERRUPTED if unfinished else 0


def _rows(plan: LaunchPlan, sweep: Path) -> list[JobRow]:
    texts = labels(plan.jobs)
    return [
        JobRow(label=text, folder=job_folder(sweep, job.id), steps=job.config.steps)
        for job, text in zip(plan.jobs, texts, strict=True)
    ]


def _check_inputs(plan: LaunchPlan) -> None:
    """Raise ConfigError when a job's model, data or reward functions are not there.

    Each combination is checked once, in this process, before a job has a folder.
    """
    seen: list[tuple[object, ...]] = []
    for job, text in zip(plan.jobs, labels(plan.jobs), strict=True):
        config = job.config
        inputs = (config.model, config.task, config.reward)
        if is_tabular(config) or inputs in seen:
            continue
        seen.append(inputs)
        try:
            check_inputs(config)
        except ValueError as error:
            raise ConfigError(f"sweep not started; job [{text}]: {error}") from error


def _check_content(plan: LaunchPlan, sweep: Path) -> None:
    """Raise ConfigError when a file has changed since one of the jobs began, or was done."""
    known: dict[tuple[object, ...], dict[str, Content]] = {}
    for job, text in zip(plan.jobs, labels(plan.jobs), strict=True):
        folder = job_folder(sweep, job.id)
        if not read_content(folder):
            continue
        named = (*named_files(job.config), *code_files(job.config))
        if named not in known:  # jobs share their files: each is read once
            known[named] = content_of(job.config)
        try:
            check_content(known[named], folder, accept=job.config.accept_changed_files)
        except ConfigError as error:
            raise ConfigError(f"sweep not started; job [{text}]: {error}") from error


def _check_cards(plan: LaunchPlan, gpus: Sequence[GPU]) -> None:
    """Raise ConfigError when a job needs more cards than the sweep has: it would wait for ever."""
    for job, text in zip(plan.jobs, labels(plan.jobs), strict=True):
        fits = job.config.gpus <= max(1, len(gpus))
        if not fits and job.config.device is not DeviceChoice.cpu:
            raise ConfigError(
                f"sweep not started; job [{text}]: gpus must be <= {len(gpus)}, the CUDA devices "
                f"of this sweep, unless device=cpu, got {job.config.gpus}"
            )


def _settings(hydra: DictConfig) -> IsolatedConfig:
    settings = checked(hydra.launcher, prefix="hydra.launcher.")
    assert isinstance(settings, IsolatedConfig)
    return settings


def _gpus(settings: IsolatedConfig) -> list[GPU]:
    """Return the cards to use; a name that NVML does not know is taken as it is."""
    cards = find_gpus(os.environ)
    if not settings.gpus:
        return cards
    known = {card.label: card for card in cards} | {card.name: card for card in cards}
    return [known.get(name, GPU(name=name, label=name, bytes=0)) for name in settings.gpus]
