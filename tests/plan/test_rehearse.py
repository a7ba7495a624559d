"""The worst step before the first: it is the plan's, and it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tiny_run import tiny_run

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.online_dpo import OnlineDPOConfig
from rlkit.plan.choose import make_plan
from rlkit.plan.device import Meter
from rlkit.plan.headline import ROWS
from rlkit.plan.rehearse import Worst, rehearse, worst_of
from rlkit.policy.policy import Policy
from rlkit.training.memory_config import MemoryConfig
from rlkit.types import KLDirection, Setting

CPU = torch.device("cpu")
WORST = Worst(num_rows=4, max_prompt=5, max_completion=7, temperature=1.0, reserve_bytes=1000)


def test_nothing_changes_not_even_the_random_generators(tmp_path: Path) -> None:
    _, state, _ = tiny_run(tmp_path)
    policy = state.learner
    assert isinstance(policy, Policy)
    before = {name: leaf.detach().clone() for name, leaf in policy.named_parameters().items()}
    weights = [p.detach().clone() for p in policy.model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    setting = Setting(group_size=4, max_completion_length=7, updates_per_batch=1)
    no_kl = KLConfig(direction=KLDirection.none)
    kinds = ((GRPOConfig(group_size=4), KLConfig()), (OnlineDPOConfig(group_size=4), no_kl))
    for algorithm_config, kl in kinds:
        objective = Objective(algorithm_config, kl, RatioConfig(), CorrectionConfig())
        assert rehearse(policy, build(objective, setting), WORST, Meter.start(CPU)) >= 0
    assert torch.equal(torch.rand(3), expected)
    for name, leaf in policy.named_parameters().items():
        assert leaf.grad is None
        assert torch.equal(leaf, before[name])
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), weights, strict=True))


def test_the_worst_step_is_a_full_micro_batch_of_full_rows() -> None:
    work = ROWS[0].work()
    plan = make_plan(work, ROWS[0].request(), budget=10**11)
    worst = worst_of(plan, work, temperature=1.0)
    assert plan.choice.tokens_per_microbatch == 8192
    assert (worst.num_rows, worst.max_prompt, worst.max_completion) == (8, 200, 824)
    assert worst.reserve_bytes == round(work.num_trained * (2 + 8 / 256))
    pairs = worst_of(plan, replace(work, rows_per_unit=2, num_prompts=3), temperature=1.0)
    assert pairs.num_rows == 8
    short = replace(plan, choice=plan.choice._replace(tokens_per_microbatch=1000))
    assert worst_of(short, work, temperature=1.0).num_rows == 1  # a row is never cut


def test_sizes_are_read_as_written() -> None:
    assert MemoryConfig(budget="24GB").budget_bytes == 24 * 10**9
    assert MemoryConfig(budget="1.5 GiB").budget_bytes == 3 * 2**29
    assert MemoryConfig().budget_bytes is None
