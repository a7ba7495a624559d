"""Ranks that sample together get what each would sample for itself; what cannot is refused."""

from __future__ import annotations

from typing import Any

import pytest
from rank_processes import run_ranks
from sharded_runs import teams

from rlkit.checks.together import check_together, ranks_together
from rlkit.config import ConfigError
from rlkit.generation import GeneratorConfig, HFGeneratorConfig, VLLMGeneratorConfig
from rlkit.ranks import ALONE

HF, TWO = HFGeneratorConfig(), VLLMGeneratorConfig(tensor_parallel=2)


@pytest.mark.nightly
def test_two_teams_of_two_ranks_sample_what_one_process_samples() -> None:
    """Three prompts: the fourth rank has none, and samples those of the third."""
    alone = teams(ALONE)
    found = run_ranks("sharded_runs:teams", 4)
    assert len(alone["tokens"]) == 12
    for rank in found:
        assert rank["tokens"] == alone["tokens"]
        assert rank["rewards"] == alone["rewards"]
        assert rank["prompts"] == alone["prompts"]
        assert rank["again"] == alone["again"]
    # Each call samples the prompts of its team, in the order of ranks; equal ones once.
    assert [rank["asked"] for rank in found] == [[2, 3], [2, 3], [1, 3], [1, 3]]


def refused(generator: GeneratorConfig, **options: Any) -> str:
    values: dict[str, Any] = {
        "gpus": 4,
        "is_sharded": False,
        "quantised": "none",
        "tuning": "lora",
    } | options
    with pytest.raises(ConfigError) as caught:
        check_together(generator, **values)
    return str(caught.value)


def test_what_cannot_be_shared_is_refused_by_name() -> None:
    team, sharded = "generator.tensor_parallel", "memory.weights=sharded"
    assert refused(TWO, gpus=3) == f"{team} must be a divisor of gpus (3), got 2"
    assert refused(TWO, quantised="nf4") == (
        f"memory.quant.kind must be none with {team} above 1, got nf4"
    )
    assert refused(HF, gpus=1, is_sharded=True) == (
        "memory.weights must be whole with gpus=1, got sharded"
    )
    assert refused(HF, is_sharded=True, tuning="full") == (
        f"model.tuning must be lora with {sharded}, got full"
    )
    assert refused(HF, is_sharded=True, quantised="nf4") == (
        f"memory.quant.kind must be none with {sharded}, got nf4"
    )
    assert refused(TWO, is_sharded=True) == f"{team} must be 4, all gpus, with {sharded}, got 2"


def test_transformers_samples_with_all_ranks_where_layers_are_sharded() -> None:
    assert ranks_together(HF, gpus=4, is_sharded=True) == 4
    assert ranks_together(HF, gpus=4, is_sharded=False) == 1
    assert ranks_together(TWO, gpus=4, is_sharded=False) == 2
