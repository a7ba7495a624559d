"""End runs that have nothing to learn from: many steps in a row without rewards or signal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlkit.schema import Options
from rlkit.training.scoring import Group

STEPS_IN_A_SWEEP = 20
"""The value of `stop.no_signal_steps` in a sweep, where nobody watches each job."""


@dataclass(kw_only=True, slots=True)
class StopConfig(Options):
    """When a run that learns nothing ends by itself. It changes no number of a run that goes on."""

    no_reward_steps: int = 5
    """Steps in a row in which no sample got a reward, after which the run ends, >= 1. Each of them
    is skipped and counted like an update with a gradient that is not finite."""
    no_signal_steps: int | None = None
    """Steps in a row in which the rewards of each group are equal and none is above 0, after which
    the run ends, >= 0; 0 = never. null = 20 in a sweep, never in a single run."""
    silence_seconds: float = 900.0
    """Seconds without a sign of life from the generator after which the run ends, in [0, 86400];
    0 = never. It names what was awaited; the last finished step is saved."""

    def __post_init__(self) -> None:
        steps = self.no_signal_steps
        for key, least, value in (
            ("no_reward_steps", 1, self.no_reward_steps),
            ("no_signal_steps", 0, 0 if steps is None else steps),
        ):
            if value < least:
                raise ValueError(f"stop.{key} must be >= {least}, got {value}")
        if not 0 <= self.silence_seconds <= 86_400:
            rule = "stop.silence_seconds must be in [0, 86400]"
            raise ValueError(f"{rule}, got {self.silence_seconds}")


class NoRewards(RuntimeError):
    """No sample had a reward for several steps in a row: the functions failed or do not apply."""


class NoSignal(RuntimeError):
    """No sample earned anything for several steps in a row."""


def check_in_a_row(config: StopConfig, *, no_reward: int, no_signal: int, blame: str) -> None:
    """End a run that has had too many steps in a row without rewards or without signal.

    Args:
        config: After how many of them it ends.
        no_reward: Last steps in a row in which no sample had a reward.
        no_signal: Last steps in a row in which nothing was above 0 and no group's rewards differed.
        blame: What the reward functions did in the last step, for the message.

    Raises:
        NoRewards: There were `stop.no_reward_steps` of the first kind.
        NoSignal: There were `stop.no_signal_steps` of the second kind.
    """
    if no_reward >= config.no_reward_steps:
        raise NoRewards(
            f"no sample had a reward in {no_reward} steps in a row (stop.no_reward_steps): {blame}"
        )
    limit = config.no_signal_steps or 0
    if limit and no_signal >= limit:
        raise NoSignal(
            f"no reward above 0 in {no_signal} steps in a row (stop.no_signal_steps), and no "
            f"rewards of a group that differ: there is nothing to learn from; {CURES}"
        )


def is_without_signal(groups: Sequence[Group]) -> bool:
    """Tell if nothing earned more than 0 and the rewards of every group are equal."""
    rewards = [[sample.reward for sample in group] for group in groups]
    return all(len(set(found)) == 1 and found[0] <= 0.0 for found in rewards)


CURES = (
    "do one of: an easier task, worked examples in the prompt, a stronger or instruction-tuned "
    "model (model.source=), a reward for partial success (+reward.functions.NAME.fn=), more "
    "samples (algorithm.group_size=), longer completions (task.max_completion_length=)"
)


def what_the_base_model_earns(rewards: Iterable[float]) -> str | None:
    """Return one line when none of the base model's samples earned anything, else None.

    `rewards` are those of its samples; NaN = not judged.
    """
    found = list(rewards)
    judged = [reward for reward in found if not math.isnan(reward)]
    if not found or any(reward > 0.0 for reward in judged) or len(set(judged)) > 1:
        return None
    count = f"{len(found)} samples of the base model"
    if not judged:
        return f"no reward at all for {count}: the reward functions failed or returned None"
    return f"no reward above 0 in {count}: there is nothing to learn from; {CURES}"
