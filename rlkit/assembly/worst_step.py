"""The memory plan against the device: the worst step is tried, and the end compares the two."""

from __future__ import annotations

from collections.abc import Callable

from rlkit.assembly.parts import Parts
from rlkit.config import ConfigError
from rlkit.generation.vllm.weights import rest
from rlkit.models.config import Switch
from rlkit.plan.parts import GB
from rlkit.plan.rehearse import rehearse, worst_of

Say = Callable[[str], None]


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
    """One line that compares the plan with what the run took: the plan is an upper bound, for the
    longest prompts and completions."""
    measured, predicted = parts.meter.peak(), parts.planned.plan.peak
    planned, taken = f"memory: planned at most {predicted / GB:.2f} GB", f"{measured / GB:.2f} GB"
    if parts.device.type != "cuda":
        return f"{planned} of tensors; the process grew by {taken}, libraries included"
    return f"{planned}, taken {taken} ({measured / predicted:.0%} of it)"
