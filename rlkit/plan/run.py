"""The plan is made, printed and kept in the run folder at the start of a run."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rlkit.config import Config
from rlkit.models.config import Checkpointing
from rlkit.models.resolved import ResolvedModel
from rlkit.plan.choose import Plan, whole_fits
from rlkit.plan.of_config import Planned, budget_of, planned, request_of
from rlkit.plan.parts import Choice
from rlkit.plan.table import lines
from rlkit.ranks import ALONE, Ranks
from rlkit.runtime.say import Say
from rlkit.tracking.files import write_atomic
from rlkit.types import Algorithm

_RECORD = "memory_plan.json"


def plan_run(
    config: Config,
    algorithm: Algorithm,
    *,
    model: ResolvedModel,
    longest_prompt: int | None,
    say: Say,
    ranks: Ranks = ALONE,
) -> Planned:
    """Plan a run that is about to start, and print the plan.

    All ranks get the plan of the one with the least memory: they split batches alike.

    Args:
        config: The user's configuration.
        algorithm: The algorithm that it describes.
        model: What `config.model` was resolved to.
        longest_prompt: As in `rlkit.plan.work.Work`, tokens.
        say: Takes one line for the user.
        ranks: The ranks of the run.

    Returns:
        The work, its plan, and the configuration to load.

    Raises:
        ValueError: The run cannot fit.
    """
    before = recorded(Path(config.run_dir))
    limits = {"bytes": -float(budget_of(config, model.device))}
    made = planned(
        config,
        algorithm,
        model=model,
        budget=-int(ranks.largest(limits)["bytes"]),
        before=before,
        longest_prompt=longest_prompt,
    )
    for line in lines(made.plan, where=place(config, model.device)):
        say(line)
    work, budget = made.work, made.plan.budget
    if work.is_sharded and whole_fits(work, request_of(made.config, work), budget=budget):
        say("memory.weights: whole would fit as well, and needs no traffic of layers")
    return made


def record(plan: Plan, run_dir: Path) -> None:
    """Keep the choice in the run's folder: to go on with another split would round otherwise."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan.choice._asdict()) + "\n"
    write_atomic(run_dir / _RECORD, text.encode())


def recorded(run_dir: Path) -> Choice | None:
    """Return what the run in `run_dir` chose before; None for a new run."""
    try:
        found = json.loads((run_dir / _RECORD).read_text())
        return Choice(**{**found, "checkpointing": Checkpointing(found["checkpointing"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def place(config: Config, device: torch.device) -> str:
    """Say in words what the budget of a plan is."""
    if config.memory.budget:
        return f"memory.budget={config.memory.budget}"
    return f"free on {device.type}"
