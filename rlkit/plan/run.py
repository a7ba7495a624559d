"""The plan at the start of a run: made, said, tried on the device, and compared with the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlkit.config import Config, ConfigError
from rlkit.generation.vllm.weights import rest
from rlkit.models.config import Checkpointing, Switch
from rlkit.plan.choose import Plan
from rlkit.plan.of_config import Planned, planned
from rlkit.plan.parts import GB, Choice
from rlkit.plan.rehearse import rehearse, worst_of
from rlkit.plan.table import lines
from rlkit.tracking.files import write_atomic
from rlkit.types import Algorithm

if TYPE_CHECKING:
    from rlkit.parts import Parts

Say = Callable[[str], None]


_RECORD = "memory_plan.json"


def plan_run(
    config: Config,
    algorithm: Algorithm,
    *,
    device: torch.device,
    longest_prompt: int | None,
    say: Say,
) -> Planned:
    """The plan of a run that is about to start, printed; raises ValueError if it cannot fit.

    `longest_prompt` as in `rlkit.plan.work.Work`.
    """
    before = recorded(Path(config.run_dir))
    made = planned(
        config,
        algorithm,
        device=device,
        budget=None,
        say=say,
        before=before,
        longest_prompt=longest_prompt,
    )
    for line in lines(made.plan, where=place(config, device)):
        say(line)
    return made


def record(plan: Plan, run_dir: Path) -> None:
    """Keep the choice in the run's folder: to go on with another split would round otherwise."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan.choice._asdict()) + "\n"
    write_atomic(run_dir / _RECORD, text.encode())


def recorded(run_dir: Path) -> Choice | None:
    """What the run in `run_dir` chose before; None for a new run."""
    try:
        found = json.loads((run_dir / _RECORD).read_text())
        return Choice(**{**found, "checkpointing": Checkpointing(found["checkpointing"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def place(config: Config, device: torch.device) -> str:
    """What the budget of a plan is."""
    if config.memory.budget:
        return f"memory.budget={config.memory.budget}"
    return f"free on {device.type}"


def try_worst_step(parts: Parts, *, say: Say) -> None:
    """Rehearse the worst micro-batch where `memory.dry_run` says so; raises ConfigError."""
    wanted = parts.config.memory.dry_run
    if wanted is Switch.off or (wanted is Switch.auto and parts.device.type != "cuda"):
        return
    if parts.engine is not None:  # as in a step: it rests while the trainer computes
        parts.meter.note()
        rest(parts.engine)
    made = parts.planned
    worst = worst_of(made.plan, made.work, temperature=parts.sampling.temperature)
    try:
        peak = rehearse(parts.policy, parts.algorithm, worst, parts.meter)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say(f"worst step tried: {peak / GB:.2f} GB, planned {made.plan.training / GB:.2f} GB")


def verdict(parts: Parts) -> str:
    """One line that compares the plan with what the run took.

    The plan holds the longest completions and, on a card, the longest prompts that are allowed; a
    CPU's process is its tensors and the libraries that it loads.
    """
    measured, predicted = parts.meter.peak(), parts.planned.plan.peak
    took = "taken" if parts.device.type == "cuda" else "the process grew by"
    share = f"({measured / predicted:.0%} of it)"
    return f"memory: planned {predicted / GB:.2f} GB, {took} {measured / GB:.2f} GB {share}"
