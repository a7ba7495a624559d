"""The plan at the start of a run: made, said, tried on the device, and compared with the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rlkit.config import Config, ConfigError
from rlkit.models.config import Switch
from rlkit.plan.choose import GB
from rlkit.plan.of_config import Planned, planned
from rlkit.plan.rehearse import rehearse, worst_of
from rlkit.plan.table import lines
from rlkit.types import Algorithm

if TYPE_CHECKING:
    from rlkit.parts import Parts

Say = Callable[[str], None]


def plan_run(config: Config, algorithm: Algorithm, *, device: torch.device, say: Say) -> Planned:
    """The plan of a run that is about to start, printed; raises ValueError if it cannot fit."""
    made = planned(config, algorithm, device=device, budget=None, say=say)
    for line in lines(made.plan, where=place(config, device)):
        say(line)
    return made


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
    made = parts.planned
    worst = worst_of(made.plan, made.work, temperature=parts.sampling.temperature)
    try:
        peak = rehearse(parts.policy, parts.algorithm, worst, parts.meter)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say(f"worst step tried: {peak / GB:.2f} GB, planned {made.plan.training / GB:.2f} GB")


def verdict(parts: Parts) -> str:
    """One line that compares the plan with what the run took."""
    measured, predicted = parts.meter.peak(), parts.planned.plan.peak
    ratio = measured / predicted - 1
    return f"memory: planned {predicted / GB:.2f} GB, taken {measured / GB:.2f} GB ({ratio:+.0%})"
