"""An algorithm of the user's own: REINFORCE against a share of the group's mean reward.

    rlkit algorithm.fn=examples/my_algorithm.py:share_of_mean algorithm.share=0.5
    rlkit -m algorithm=grpo,examples/my_algorithm.py:share_of_mean seed=0,1,2

Nothing of rlkit is edited: the dataclass has the options, the factory makes the two pure functions.
With `share=1` it is GRPO without the scale by the standard deviation, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.algorithms import Objective
from rlkit.algorithms.objective.policy_gradient import PolicyGradientConfig, policy_gradient_loss
from rlkit.functional import group_mean_advantages
from rlkit.types import Algorithm, RolloutBatch, Setting, TrainBatch


@dataclass(kw_only=True, slots=True)
class ShareConfig(PolicyGradientConfig):
    """REINFORCE with a share of the group's mean as baseline."""

    share: float = 1.0
    """Share of the mean that is subtracted, in [0, 1]."""

    def check(self) -> None:
        PolicyGradientConfig.check(self)
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"algorithm.share must be in [0, 1], got {self.share}")


def share_of_mean(objective: Objective[ShareConfig], setting: Setting) -> Algorithm:
    """Return the algorithm for a run with these facts."""
    cfg = objective.algorithm
    policy = policy_gradient_loss(objective, setting)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        centred = group_mean_advantages(rollout.rewards, rollout.group_ids)
        rows = cfg.share * centred + (1 - cfg.share) * rollout.rewards
        mask = rollout.completion_mask
        return TrainBatch.prepared(
            rollout, loss_mask=mask, advantages=rows[:, None].expand(mask.shape)
        )

    return Algorithm(prepare, policy.loss, policy.needs, policy.outputs)
