"""The plan of ranks that share layers or an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_works import step_work

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, Switch
from rlkit.plan.choose import DoesNotFit, make_plan, whole_fits
from rlkit.plan.parts import GB, Request
from rlkit.plan.work import Work

REQUEST = Request(
    tokens_per_microbatch=None,
    checkpointing=Checkpointing.auto,
    kv_cache_bytes=0,
    graphs=Switch.auto,
)
# Llama 3.1 8B: q and o, k and v, three matrices of the MLP, two norms.
LAYER = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
OUTSIDE = 2 * 128256 * 4096 + 4096


def work(**changes: object) -> Work:
    return replace(step_work("llama3.1-8b", 4, 4, 128), **changes)  # type: ignore[arg-type]


def test_a_rank_holds_its_part_of_the_layers_and_three_whole_ones() -> None:
    whole = work(ranks=4)
    assert whole.held_bytes == 2 * (32 * LAYER + OUTSIDE)
    sharded = work(ranks=4, is_sharded=True)
    assert sharded.held_bytes == 2 * (32 * LAYER // 4 + OUTSIDE + 3 * LAYER)


def test_an_engine_of_two_ranks_has_half_of_weights_and_cache_and_all_rows_on_each() -> None:
    apart = work(ranks=2, sampler=Sampler.vllm_separate)
    team = replace(apart, engine_parts=2)
    assert team.engine_weight_bytes == apart.weight_bytes // 2
    assert team.kv_token_bytes == apart.kv_token_bytes // 2 == 32 * 2 * 8 * 128 * 2 // 2
    assert team.rows_together == 2 * apart.num_rows == 32
    # More ranks than heads of keys: a head is on several.
    assert replace(team, engine_parts=16).kv_token_bytes == apart.kv_token_bytes // 8
    plans = [make_plan(each, REQUEST, budget=80 * GB) for each in (apart, team)]
    assert [plan.choice.at_once for plan in plans] == [16, 32]
    # Twice the rows at half the bytes; two spare blocks of 16 tokens are halved.
    spare = 2 * 16 * apart.kv_token_bytes
    assert plans[1].kv_cache_bytes == plans[0].kv_cache_bytes - spare // 2


def test_the_plan_names_sharding_where_it_makes_a_run_fit() -> None:
    alone = work(sampler=Sampler.hf, ranks=4)
    budget = alone.held_bytes
    with pytest.raises(DoesNotFit, match=r"; memory\.weights=sharded makes it fit"):
        make_plan(alone, REQUEST, budget=budget)
    sharded = replace(alone, is_sharded=True)
    assert make_plan(sharded, REQUEST, budget=budget).fits
    assert not whole_fits(sharded, REQUEST, budget=budget)
    assert whole_fits(sharded, REQUEST, budget=2 * budget)
    engine = work(sampler=Sampler.vllm, ranks=4)
    keys = r"memory\.weights=sharded generator\.tensor_parallel=4"
    with pytest.raises(DoesNotFit, match=f"; {keys} makes it fit"):
        make_plan(engine, REQUEST, budget=budget)
