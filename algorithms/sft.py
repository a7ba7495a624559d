"""Supervised fine-tuning minimises the cross-entropy of given completions, the prompt left out.

The loss of a token is -log pi(token | all before it). It is the policy gradient of an advantage of
1 on data that the policy did not sample. Averaged over all tokens of the batch it is the loss that
transformers and TRL compute when the labels of the prompt are -100.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlkit.algorithms.objective.aggregation import Aggregation, aggregate_of
from rlkit.algorithms.objective.base import (
    AlgorithmConfig,
    GroupFilter,
    Objective,
    check_setting,
    loss_mask_of,
)
from rlkit.algorithms.objective.correction import CorrectionConfig
from rlkit.algorithms.objective.ratio import RatioConfig
from rlkit.functional import keep, token_mean
from rlkit.types import (
    Algorithm,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    RolloutBatch,
    RolloutKind,
    Setting,
    TrainBatch,
)


@dataclass(kw_only=True, slots=True)
class SFTConfig(AlgorithmConfig):
    """Supervised fine-tuning on the completions that the task gives (`task.target`)."""

    group_size: int = 1
    """Completions of a prompt; a task gives one."""
    aggregation: Aggregation = Aggregation.token_mean
    """token_mean: each token counts the same (TRL); sequence_mean: each row does."""

    def check(self) -> None:
        AlgorithmConfig.check(self)
        known = (Aggregation.token_mean, Aggregation.sequence_mean)
        if self.aggregation not in known:
            raise ValueError(
                "algorithm.aggregation must be token_mean or sequence_mean with algorithm=sft, "
                f"got {self.aggregation}"
            )
        if self.group_filter is not GroupFilter.none:
            raise ValueError(
                "algorithm.group_filter must be none with algorithm=sft, which has no rewards, got "
                f"{self.group_filter}"
            )
        if self.overlong_fraction:
            raise ValueError(
                "algorithm.overlong_fraction must be 0 with algorithm=sft, which has no rewards, "
                f"got {self.overlong_fraction}"
            )


def sft(objective: Objective[SFTConfig], setting: Setting) -> Algorithm:
    """Build supervised fine-tuning; raises ValueError on axes that a likelihood does not have."""
    cfg = objective.algorithm
    check_setting(cfg, setting)
    _check_axes(objective)
    aggregate = aggregate_of(cfg.aggregation, setting)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        """Return the rows as they are, with an advantage of 1 on every token."""
        mask = loss_mask_of(cfg, rollout)
        ones = torch.ones(mask.shape, dtype=rollout.rewards.dtype, device=mask.device)
        return TrainBatch.prepared(rollout, loss_mask=mask, advantages=ones)

    def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
        """Return the mean negative log-likelihood, nats."""
        total = aggregate(-keep(out.logps, batch.loss_mask), batch)
        metrics = {"loss/policy": total.detach()}
        if out.entropy is not None:
            entropy = token_mean(out.entropy, batch.loss_mask, batch.num_tokens)
            metrics["entropy"] = entropy.detach()
        return LossOutput(total, metrics)

    return Algorithm(
        prepare=prepare,
        loss=loss,
        outputs=OutputSpec(entropy=True),
        rollouts=RolloutKind.targets,
    )


def _check_axes(objective: Objective[SFTConfig]) -> None:
    if objective.kl.enabled:
        raise ValueError(
            f"kl.direction must be none with algorithm=sft, got {objective.kl.direction}; "
            "set kl=none"
        )
    if objective.ratio != RatioConfig():
        raise ValueError("algorithm=sft has no importance ratio; set ratio=token")
    if objective.correction != CorrectionConfig():
        raise ValueError("algorithm=sft has no sampler weights; set correction=none")
