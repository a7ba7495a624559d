"""This module makes the rewards of a run: processes for functions, and scorers of whole batches."""

from __future__ import annotations

from rlkit.config import Config
from rlkit.rewards import RewardSpec, reward_specs
from rlkit.rewards.judge.scorer import JudgeScorer
from rlkit.rewards.pool import RewardPool
from rlkit.rewards.scorers import BatchScorer
from rlkit.tasks import Task


def reward_pool(config: Config, task: Task) -> RewardPool:
    """Return the reward functions of a run, their workers started.

    Raises ValueError with one line when an option of a judge breaks a rule.
    """
    specs = reward_specs(config.reward, task.rewards)
    scorers: dict[str, BatchScorer] = {}
    for spec in specs:
        if (scorer := _scorer(spec)) is not None:
            scorers[spec.name] = scorer
    return RewardPool(specs, config.reward, scorers)


def _scorer(spec: RewardSpec) -> BatchScorer | None:
    if spec.fn == "judge":
        return JudgeScorer(spec)
    return None
