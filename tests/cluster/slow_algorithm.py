"""REINFORCE that takes its time, so that there is some in which a job can be disturbed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rlkit.algorithms import Objective
from rlkit.algorithms.objective.policy_gradient import PolicyGradientConfig, policy_gradient_loss
from rlkit.functional import group_mean_advantages
from rlkit.types import Algorithm, RolloutBatch, Setting, TrainBatch


@dataclass(kw_only=True, slots=True)
class SlowConfig(PolicyGradientConfig):
    """REINFORCE with the group's mean as baseline."""

    nap: float = 0.0
    """Seconds that each step sleeps."""


def slow(objective: Objective[SlowConfig], setting: Setting) -> Algorithm:
    """Return the algorithm for a run with these facts."""
    cfg = objective.algorithm
    policy = policy_gradient_loss(objective, setting)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        time.sleep(cfg.nap)
        centred = group_mean_advantages(rollout.rewards, rollout.group_ids)
        mask = rollout.completion_mask
        return TrainBatch.prepared(
            rollout, loss_mask=mask, advantages=centred[:, None].expand(mask.shape)
        )

    return Algorithm(prepare, policy.loss, policy.needs, policy.outputs)
