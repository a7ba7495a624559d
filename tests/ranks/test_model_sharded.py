"""Each rank has a part of every layer: gradients, samples and runs are those of whole models."""

from __future__ import annotations

import pytest
import torch
from rank_processes import run_ranks, same_on_all
from rank_runs import Part
from sharded_runs import CHOSEN, alone, on_card
from tiny_models import make_batch

from rlkit.models.config import Checkpointing
from rlkit.ranks.deal import deal_evenly
from rlkit.training.microbatch import microbatches, share_of


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_sharded_model_has_the_gradient_of_a_whole_one(size: int) -> None:
    ranks = run_ranks("sharded_runs:gradients", size)
    for case in CHOSEN:
        here = alone(case)
        for mode in ("off", "on"):
            whole, sharded = (
                [rank[f"{name} {case} {mode}"] for rank in ranks] for name in ("whole", "sharded")
            )
            # Every entry of a layer is on one rank.
            assert sharded[0]["all"] > 10_000 and whole[0]["all"] == 0
            assert sum(rank["own"] for rank in sharded) == sharded[0]["all"]
            assert max(rank["own"] for rank in sharded) < 1.2 * sharded[0]["all"] / size
            found = same_on_all([{**rank, "own": 0} for rank in sharded])
            assert found["tokens"] == here["tokens"]
            there, one = (torch.tensor(x["gradient"]).double() for x in (found, here))
            assert one.norm() > 0
            assert float((there - one).norm() / one.norm()) < 1e-6
            assert found["logps"] == pytest.approx(here["logps"], abs=1e-5)


def test_a_run_of_a_sharded_model_samples_and_learns_what_a_whole_one_does() -> None:
    found = same_on_all(run_ranks("sharded_runs:runs", 2))
    whole, sharded = found["whole"], found["sharded"]
    assert sharded["rewards"] == pytest.approx(whole["rewards"], abs=1e-12)
    assert sharded["evaluations"] == whole["evaluations"]
    adapters = [torch.tensor(each["adapter"]) for each in (whole, sharded)]
    assert adapters[0].allclose(adapters[1], atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [Checkpointing.off, Checkpointing.on], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_card_that_gathers_its_own_layers_has_the_gradient_of_a_whole_model(
    dtype: torch.dtype, mode: Checkpointing
) -> None:
    (one, tokens), (there, sampled) = on_card(dtype, mode)
    assert sampled == tokens
    vectors = [torch.tensor(x).double() for x in (one, there)]
    assert vectors[0].norm() > 0
    # Both compute the same products in the same order; attention may add up in another.
    cosine = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
    assert float(cosine) > (1 - 1e-6 if dtype is torch.float32 else 0.9999)


def test_ranks_in_step_get_as_many_micro_batches_each() -> None:
    batch = make_batch([[3, 4, 5]] * 3, [[6] * count for count in (5, 2, 7)])
    plan = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]
    shares = [share_of(plan, batch, Part(rank, 2, in_step=True)) for rank in range(2)]
    # Rows of 8, 5 and 10 tokens: 10 and 8 in the first round, 5 for the rank that has 8.
    assert [[(int(s.rows), s.counts) for s in share] for share in shares] == [
        [(2, True), (1, False)],
        [(0, True), (1, True)],
    ]
    assert len(microbatches(batch, max_tokens=0, ranks=Part(0, 2, in_step=True))) == 2


def test_items_are_dealt_in_rounds() -> None:
    # 9 | 8 | 7, then 6 to who has 7, 5 to who has 8, 1 to who has 9.
    assert deal_evenly([9, 8, 7, 6, 5, 1], 3) == [0, 1, 2, 2, 1, 0]
    assert deal_evenly([4], 3) == [0]
