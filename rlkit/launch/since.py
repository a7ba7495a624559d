"""A run that goes on says what else has changed since it began; it refuses nothing here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from rlkit.config import Config
from rlkit.training.optim import Schedule, learning_rate


def planned_steps(run_dir: Path) -> int | None:
    """Return the number of steps that the run in `run_dir` was to have; None when unknown."""
    try:
        steps = yaml.safe_load((run_dir / "config.yaml").read_text())["steps"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None
    return steps if isinstance(steps, int) else None


def changed_versions(run_dir: Path, versions: Mapping[str, str]) -> list[str]:
    """Return a line when the software is not that of the run's last start, as `run.json` has it."""
    try:
        before = dict(json.loads((run_dir / "run.json").read_text())["versions"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    changed = [
        f"{name} {before.get(name, 'none')} -> {versions.get(name, 'none')}"
        for name in sorted({*before, *versions})
        if before.get(name) != versions.get(name)
    ]
    if not changed:
        return []
    return [
        f"the software has changed since this run was last started: {', '.join(changed)}; "
        "what follows may differ from an undisturbed run"
    ]


def changed_rate(config: Config, *, planned: int | None, step: int) -> list[str]:
    """Return a line when another number of steps moves the learning rate.

    Args:
        config: What the run goes on with.
        planned: The steps that it was to have before; None when unknown.
        step: The steps that are done.

    Returns:
        One line or none.
    """
    optim = config.optim
    if planned in (None, config.steps) or not step or optim.schedule is Schedule.constant:
        return []
    assert planned is not None
    each = optim.updates_per_batch
    before, after = (
        learning_rate(optim, update=step * each, total_updates=total * each)
        for total in (planned, config.steps)
    )
    if before == after:
        return []
    return [
        f"steps={config.steps} instead of {planned} with optim.schedule={optim.schedule.value}: "
        f"the learning rate goes on at {after:.3g} after step {step}, where the plan had "
        f"{before:.3g}; a run of {config.steps} steps from the start would have had other rates"
    ]


def by_the_clock(config: Config, *, step: int) -> list[str]:
    """Return a line for a run that goes on at `step` and whose batches depend on the clock."""
    if not step or not config.streams:
        return []
    return [
        "environment.admission=stream: seeds and prompts are those of the whole run, but the clock "
        "decides which turns share a batch; a step that is made again may differ by rounding"
    ]
