"""This module compares plan and device: it tries the worst step first, and reports at the end."""

from __future__ import annotations

from rlkit.assembly.model_run import ModelRun
from rlkit.config import ConfigError
from rlkit.generation.vllm.weights import rest
from rlkit.models.config import Switch
from rlkit.plan.of_config import peak_with
from rlkit.plan.parts import GB
from rlkit.plan.rehearse import rehearse, worst_of
from rlkit.runtime.say import Say

_OWN_BESIDE = GB
"""Bytes that libraries of this process (handles, graphs) may hold outside of torch's allocator."""


def try_worst_step(run: ModelRun, *, say: Say) -> None:
    """Rehearse the worst micro-batch where `memory.dry_run` says so; raises ConfigError."""
    wanted = run.config.memory.dry_run
    if wanted is Switch.off or (wanted is Switch.auto and run.device.type != "cuda"):
        return
    if run.engine is not None:  # as in a step: it rests while the trainer computes
        run.meter.note()
        rest(run.engine)
    made = run.planned
    worst = worst_of(made.plan, made.work, temperature=run.sampling.temperature)
    try:
        peak = rehearse(run.policy, run.algorithm, worst, run.meter)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say(f"worst step tried: {peak / GB:.2f} GB, planned {made.plan.training / GB:.2f} GB")


def verdict(run: ModelRun) -> str:
    """Return one line that compares the plan with what the run took.

    The plan is for completions of full length. On a CPU, where no worst step is tried, the line
    also says what the plan is for the completions that came.
    """
    measured, predicted = run.meter.peak(), run.planned.plan.peak
    if run.device.type == "cuda":
        return compared(predicted, on_device=measured, of_process=run.meter.of_process())
    line = f"memory: planned at most {predicted / GB:.2f} GB"
    if sampled := run.meter.sampled_tokens:
        predicted = peak_with(run.planned, sampled_tokens=sampled)
        line += f", {predicted / GB:.2f} GB for the {sampled} tokens that a step sampled"
    return f"{line}; the process grew by {measured / GB:.2f} GB ({measured / predicted:.0%} of it)"


def compared(predicted: int, *, on_device: int, of_process: int) -> str:
    """Return the line for a card, in bytes; a card counts what all its processes hold together."""
    planned = f"memory: planned at most {predicted / GB:.2f} GB"
    beside = on_device - of_process
    if beside <= _OWN_BESIDE:
        return f"{planned}, taken {on_device / GB:.2f} GB ({on_device / predicted:.0%} of it)"
    return (
        f"{planned}, taken {of_process / GB:.2f} GB ({of_process / predicted:.0%} of it) by this "
        f"process; {beside / GB:.2f} GB more came into use on the card, by other processes or "
        f"libraries"
    )
