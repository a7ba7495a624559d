"""float16 gradients: what would vanish or overflow arrives, and no update is lost on the way."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from linear_learner import LinearLearner
from tiny_models import make_batch
from tiny_run import CPU, flat, tiny_run
from torch import Tensor

from rlkit.training import checkpoint
from rlkit.training.loss_scale import FLOAT16, UNSCALED, LossScale
from rlkit.training.optim import OptimConfig, build_optimizer
from rlkit.training.progress import restore
from rlkit.training.stopping import StopRequest
from rlkit.training.update import TrainState, UpdateSettings, train_step
from rlkit.types import Algorithm, LossOutput, TrainBatch

FEATURES = torch.tensor([[0.5, -1.5], [2.0, 0.25]])
SETTINGS = UpdateSettings(
    optim=OptimConfig(learning_rate=0.5, max_grad_norm=1e30),
    total_updates=10,
    temperature=1.0,
    tokens_per_microbatch=3,
)


def step(
    weight: float, *, scale: LossScale = FLOAT16
) -> tuple[TrainState, LinearLearner, Tensor, bool]:
    """One update on weight x sum of logps, in two micro-batches: state, gradient, skipped."""
    learner = LinearLearner(
        torch.zeros(2, requires_grad=True),
        lambda batch: FEATURES[batch.group_ids],
        dtype=torch.float16,
    )
    optimizer = build_optimizer(learner.named_parameters(), SETTINGS.optim)
    rollout = make_batch([[3], [3]], [[4, 5], [6, 7]])
    batch = TrainBatch.prepared(
        rollout, loss_mask=rollout.completion_mask, advantages=torch.zeros(2, 2)
    )
    algorithm = Algorithm(
        prepare=lambda rollout: batch,
        loss=lambda output, micro: LossOutput(weight * output.logps.sum(), {}),
    )
    state = TrainState(learner=learner, optimizer=optimizer, loss_scale=scale)
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(learner.leaf.grad.clone())  # type: ignore[union-attr]
    )
    state, result = train_step(state, batch, algorithm, SETTINGS)
    skipped = result.metrics["skipped_updates"] == 1.0
    return state, learner, seen[0] if seen else torch.zeros(2), skipped


def test_a_gradient_below_float16_vanishes_without_and_arrives_with_a_scale() -> None:
    weight = 2.0**-30  # the smallest float16 is 2^-24
    assert not step(weight, scale=UNSCALED)[2].any()
    _, learner, gradient, skipped = step(weight)
    assert torch.equal(gradient, weight * FEATURES.sum(0))
    assert len(learner.rows) == 2 and not skipped


def test_an_overflow_lowers_the_scale_and_keeps_the_update() -> None:
    weight = 16.0  # 16 x 2^16 and 16 x 2^13 overflow, 16 x 2^10 does not
    state, learner, gradient, skipped = step(weight)
    assert torch.equal(gradient, weight * FEATURES.sum(0))
    assert state.loss_scale.value == 2.0**10
    assert len(learner.rows) == 6 and not skipped
    assert state.updates == 1 and state.skipped_in_row == 0


def test_a_gradient_beyond_float16_is_skipped_and_the_scale_stays() -> None:
    state, learner, _, skipped = step(2.0**20)
    assert skipped and state.skipped_in_row == 1
    assert state.loss_scale == FLOAT16
    assert not learner.leaf.any()


def test_a_loss_that_is_not_finite_is_not_tried_again() -> None:
    state, learner, _, skipped = step(math.nan)
    assert skipped and len(learner.rows) == 2
    assert state.loss_scale == FLOAT16


def test_the_scale_grows_back_up_to_its_limit() -> None:
    scale = LossScale(value=2.0**23, limit=2.0**24)
    values = []
    for _ in range(150):
        scale = scale.after_update()
        values.append(scale.value)
    assert values[48:51] == [2.0**23, 2.0**24, 2.0**24]
    assert values[-1] == 2.0**24
    assert UNSCALED.after_update().value == 1.0


def test_a_float16_policy_takes_the_float32_policys_first_step(tmp_path: Path) -> None:
    """And its scale survives a checkpoint."""
    moved = []
    for dtype in (torch.float32, torch.float16):
        trainer, state, tracker = tiny_run(tmp_path / str(dtype), num_steps=1, dtype=dtype)
        start = flat(state.learner.named_parameters()).clone()
        if dtype is torch.float16:
            state.loss_scale = FLOAT16
        trainer.fit(state, stop=StopRequest())
        moved.append(flat(state.learner.named_parameters()) - start)
    assert tracker.steps[0].metrics["skipped_updates"] == 0.0
    assert tracker.steps[0].metrics["loss_scale"] == 2.0**13  # 2^16 overflows in this model
    # Adam's first step is the sign of the gradient: they differ where it is nearly 0.
    agree = (moved[0].sign() == moved[1].sign()).float().mean()
    assert agree > 0.97
    saved, _ = checkpoint.load_newest(tmp_path / "torch.float16/checkpoints", device=CPU)
    assert saved is not None
    _, fresh, _ = tiny_run(tmp_path / "fresh", dtype=torch.float16)
    assert restore(fresh, saved).loss_scale == LossScale(2.0**13, 2.0**24, 1)
