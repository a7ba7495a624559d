"""Environments that misbehave cost their own episodes alone, in rounds and in a stream."""

from __future__ import annotations

import pytest
from environment_faults import FAULTS, LEFTOVERS, Faulty
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlkit.environments import Admission

EVERY_TIME = (
    *("raises", "sleeps for ever", "segmentation fault", "a huge message", "a huge state"),
    *("a reward of NaN", "leaves a tree of sessions and hangs"),
)
"""One of each kind; `benchmarks.faults.environments` meets them all, as does a nightly run."""


@pytest.fixture(scope="module", params=list(Admission))
def faulty(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Faulty:
    return Faulty(tmp_path_factory.mktemp("faulty"), model, tokenizer, request.param)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=[] if name in EVERY_TIME else [pytest.mark.nightly])
        for name in FAULTS | LEFTOVERS
    ],
)
def test_a_fault_costs_its_own_episodes(faulty: Faulty, fault: str) -> None:
    assert faulty.problem(fault) == ""
