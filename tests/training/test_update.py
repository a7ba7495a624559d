"""How the update splits a batch: what is computed once counts once, and two graphs count twice."""

from __future__ import annotations

import pytest
import torch
from linear_learner import LinearLearner
from tiny_models import make_batch

from rlkit.training.optim import OptimConfig
from rlkit.training.update import UpdateSettings, accumulate
from rlkit.types import Algorithm, LossOutput, OutputSpec, TrainBatch


def rows_of_each_pass(*, values: bool, share_prompts: bool = True) -> list[int]:
    """Four samples of one prompt, 10 + 4 tokens each, at 26 tokens a micro-batch."""
    rollout = make_batch([[3] * 10] * 4, [[4] * 4] * 4)
    rollout.group_ids.zero_()
    batch = TrainBatch(
        rollout=rollout,
        loss_mask=rollout.completion_mask,
        advantages=torch.zeros(4, 4),
        returns=None,
        num_tokens=16,
        num_sequences=4,
    )
    algorithm = Algorithm(
        prepare=lambda rollout: batch,
        loss=lambda output, micro: LossOutput(output.logps.sum(), {}),
        outputs=OutputSpec(values=values),
    )
    settings = UpdateSettings(
        optim=OptimConfig(),
        total_updates=1,
        temperature=1.0,
        tokens_per_microbatch=26,
        share_prompts=share_prompts,
    )
    learner = LinearLearner(
        torch.ones((), requires_grad=True), lambda micro: micro.completion_ids.float()
    )
    metrics, _ = accumulate(learner, batch, algorithm, settings)
    assert metrics["loss"] == 4.0 * 16
    assert learner.leaf.grad == 4.0 * 16
    return learner.rows


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"values": False}, [4]),  # 10 + 4 x 4 tokens
        ({"values": False, "share_prompts": False}, [1, 1, 1, 1]),  # 14 each
        ({"values": True}, [1, 1, 1, 1]),  # 13 tokens for each of two graphs
    ],
)
def test_the_budget_holds_what_is_computed_and_kept(
    options: dict[str, bool], rows: list[int]
) -> None:
    assert rows_of_each_pass(**options) == rows
