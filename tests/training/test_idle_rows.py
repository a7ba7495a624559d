"""Rows whose loss has no gradient are measured as ever, and cost no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import make_batch
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.training.optim import OptimConfig
from rlkit.training.update import UpdateSettings, accumulate
from rlkit.types import Algorithm, KLDirection, OutputSpec, PolicyOutput, RolloutBatch, Setting


@dataclass
class Bigrams:
    """A policy of one table: the logits of a token depend on the place alone."""

    table: Tensor = field(
        default_factory=lambda: torch.randn(
            4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
        ).requires_grad_()
    )
    passes: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def adapter(self) -> Mapping[str, Tensor]:
        return {"table": self.table}

    def named_parameters(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def forward(
        self,
        batch: RolloutBatch,
        *,
        adapter: Mapping[str, Tensor] | None,
        temperature: float,
        spec: OutputSpec,
    ) -> PolicyOutput:
        self.passes.append((len(batch), torch.is_grad_enabled()))
        logps = torch.log_softmax(self.table[: batch.completion_ids.shape[1]], -1)
        taken = logps[None].expand(len(batch), -1, -1).gather(2, batch.completion_ids[..., None])
        entropy = -(logps.exp() * logps).sum(-1).expand(len(batch), -1)
        return PolicyOutput(taken[..., 0].masked_fill(~batch.completion_mask, 0.0), entropy)


def grpo(*, kl: KLDirection, aggregation: Aggregation = Aggregation.sequence_mean) -> Algorithm:
    config = GRPOConfig(group_size=2, aggregation=aggregation)
    needed = KLConfig(direction=kl)
    objective = Objective(config, needed, RatioConfig(), CorrectionConfig())
    return build(objective, Setting(group_size=2, max_completion_length=4, updates_per_batch=1))


def rollouts(rewards: list[float]) -> RolloutBatch:
    """Three groups of two; the columns that GRPO may need are there."""
    completions = [[1, 2, 3], [4], [5, 5, 2, 1], [0, 1], [2, 2], [3, 4, 1]]
    batch = make_batch([[3, 3]] * 6, completions)
    batch.group_ids.copy_(torch.tensor([0, 0, 1, 1, 2, 2]))
    batch.rewards.copy_(torch.tensor(rewards))
    return batch


SETTINGS = UpdateSettings(
    optim=OptimConfig(), total_updates=1, temperature=1.0, tokens_per_microbatch=8
)


@pytest.mark.parametrize(
    "rewards", [[1, 0, 0.5, 0.5, 0, 1], [1, 1, 1, 0, 0, 0]], ids=["one group", "two groups"]
)
def test_gradient_and_metrics_are_those_of_the_whole_batch(rewards: list[float]) -> None:
    algorithm = grpo(kl=KLDirection.none)
    assert algorithm.idle is not None
    batch = algorithm.prepare(rollouts(rewards))
    found = []
    for one in (algorithm, algorithm._replace(idle=None)):
        learner = Bigrams()
        metrics, logps = accumulate(learner, batch, one, SETTINGS)
        found.append((learner, metrics, logps))
    (learner, metrics, logps), (whole, all_metrics, all_logps) = found
    assert learner.table.grad is not None and whole.table.grad is not None
    assert whole.table.grad.abs().max() > 0.01
    torch.testing.assert_close(learner.table.grad, whole.table.grad, rtol=1e-12, atol=1e-14)
    assert metrics == pytest.approx(all_metrics, rel=1e-6)
    assert torch.equal(logps, all_logps)
    idle = sum(rows for rows, with_gradient in learner.passes if not with_gradient)
    assert idle == (2 if rewards[0] != rewards[1] else 4)
    assert all(with_gradient for _, with_gradient in whole.passes)


def test_a_batch_without_any_signal_has_a_gradient_of_zeros() -> None:
    """The moments of an optimiser decay as they do after a gradient that is 0."""
    algorithm = grpo(kl=KLDirection.none)
    learner = Bigrams()
    batch = algorithm.prepare(rollouts([1, 1, 0, 0, 0.5, 0.5]))
    metrics, _ = accumulate(learner, batch, algorithm, SETTINGS)
    assert learner.table.grad is not None
    assert torch.equal(learner.table.grad, torch.zeros(4, 6, dtype=torch.float64))
    assert metrics["loss"] == 0.0
    assert metrics["entropy"] > 0.1
    assert not any(with_gradient for _, with_gradient in learner.passes)


def test_other_terms_of_the_loss_and_other_splits_leave_no_row_idle() -> None:
    assert grpo(kl=KLDirection.reverse).idle is None
    setting = Setting(
        group_size=2, max_completion_length=4, updates_per_batch=1, microbatched=False
    )
    no_kl = KLConfig(direction=KLDirection.none)
    for config in (
        GRPOConfig(group_size=2, entropy_coef=0.1),
        GRPOConfig(group_size=2, aggregation=Aggregation.microbatch_token_mean),
    ):
        objective = Objective(config, no_kl, RatioConfig(), CorrectionConfig())
        assert build(objective, setting).idle is None
