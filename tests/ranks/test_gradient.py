"""The gradient of N ranks is that of one: losses are sums over the whole batch's denominators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_processes import run_ranks, same_on_all
from rank_runs import CASES, Part, gradient, run

from rlkit.ranks import ALONE

MODULE = "rank_runs"


@pytest.fixture(scope="module")
def of_two() -> Any:
    """The first gradient of every case, equal on two ranks."""
    return same_on_all(run_ranks(f"{MODULE}:gradients", 2))


@pytest.fixture(scope="module")
def runs_of_two() -> Any:
    """Four steps of every case, equal on two ranks."""
    return same_on_all(run_ranks(f"{MODULE}:runs", 2))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_bitwise_two_partial_sums(case: str, of_two: Any) -> None:
    """Plain additions in this process are the independent truth."""
    # What two ranks would plan, computed by one process: the split is that of two.
    parts = [gradient(case, ALONE, computes=Part(rank, 2)) for rank in range(2)]
    for name in ("gradient", "logps"):
        both = [torch.tensor(part[name], dtype=torch.float32) for part in parts]
        assert torch.equal(torch.tensor(of_two[case][name], dtype=torch.float32), both[0] + both[1])
    for name, value in of_two[case]["metrics"].items():
        assert value == pytest.approx(sum(p["metrics"].get(name, 0.0) for p in parts), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradient_and_the_samples_of_one(case: str, of_two: Any) -> None:
    alone = gradient(case, ALONE)
    assert of_two[case]["tokens"] == alone["tokens"]
    assert of_two[case]["rewards"] == alone["rewards"]
    there, here = (torch.tensor(x["gradient"]).double() for x in (of_two[case], alone))
    assert here.norm() > 0
    assert float((there - here).norm() / here.norm()) < 1e-6
    for name, value in alone["metrics"].items():
        assert of_two[case]["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_a_whole_run_of_two_ranks_is_that_of_one(case: str, runs_of_two: Any) -> None:
    alone, two = run(case, ALONE), runs_of_two[case]
    assert two["rewards"] == pytest.approx(alone["rewards"], abs=1e-12)
    assert two["evaluations"] == [list(values) for values in alone["evaluations"]]
    assert torch.tensor(two["adapter"]).allclose(torch.tensor(alone["adapter"]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_three_ranks_of_which_one_has_no_prompt_more_than_once() -> None:
    """Three ranks, three prompts; a fourth rank has none, and adds zeros."""
    alone = gradient("token_mean", ALONE)
    for size in (3, 4):
        found = same_on_all(run_ranks(f"{MODULE}:gradients", size))["token_mean"]
        there, here = (torch.tensor(x["gradient"]).double() for x in (found, alone))
        assert found["tokens"] == alone["tokens"]
        assert float((there - here).norm() / here.norm()) < 1e-6
