"""Compute the critic's loss and its metrics."""

from __future__ import annotations

from rlkit.algorithms.objective.aggregation import Aggregate
from rlkit.functional import keep, token_mean, value_loss
from rlkit.types import Loss, LossOutput, PolicyOutput, TrainBatch


def value_objective(aggregate: Aggregate, *, clip: float | None, coefficient: float) -> Loss:
    """Return the critic's loss, coefficient * aggregate(value loss), with its metrics."""

    def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
        old_values = batch.rollout.values
        if out.values is None or batch.returns is None or old_values is None:
            raise ValueError("ppo needs PolicyOutput.values, TrainBatch.returns and the values")
        mask = batch.loss_mask
        values, old = keep(out.values, mask), keep(old_values.detach(), mask)
        returns = keep(batch.returns.detach(), mask)
        total = coefficient * aggregate(value_loss(values, old, returns, clip=clip), batch)
        moved = (values - old).abs() > (clip or float("inf"))
        metrics = {
            "loss/value": total.detach(),
            "value/mean": token_mean(values.detach(), mask, batch.num_tokens),
            "value/error": token_mean((values - returns).detach().square(), mask, batch.num_tokens),
            "value/clip_ratio": moved.sum() / batch.num_tokens,
        }
        return LossOutput(total, metrics)

    return loss
