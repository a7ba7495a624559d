"""What the plan gives, what it refuses, and the way out that it names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, QuantConfig, QuantKind
from rlkit.plan.choose import DoesNotFit, Plan, make_plan
from rlkit.plan.headline import ROWS
from rlkit.plan.parts import GB
from rlkit.plan.run import record, recorded
from rlkit.plan.table import lines
from rlkit.training.optim import OptimKind

SMALL, LARGE = ROWS[0], ROWS[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_headline_rows_fit_their_targets(row: object) -> None:
    assert row in ROWS
    headline = ROWS[ROWS.index(row)]
    plan = make_plan(headline.work(), headline.request(), budget=int(headline.target * GB))
    assert plan.fits
    assert plan.peak <= headline.target * GB
    assert plan.choice.tokens_per_microbatch >= headline.work().row_tokens


def test_sums_and_text_agree() -> None:
    plan = make_plan(SMALL.work(), SMALL.request(), budget=5 * GB)
    assert plan.training == sum(part.training for part in plan.parts)
    text = list(lines(plan, where="a card"))
    total = next(line for line in text if line.startswith("in all"))
    assert [float(x) for x in re.findall(r"\d+\.\d+", total)] == [
        round(plan.sampling / GB, 2),
        round(plan.training / GB, 2),
    ]


def test_less_memory_means_smaller_micro_batches_then_offload() -> None:
    work, request = LARGE.work(), LARGE.request()

    def plan(gigabytes: float) -> Plan:
        return make_plan(work, request, budget=int(gigabytes * GB))

    assert plan(80).choice.at_once == 8
    assert plan(80).choice.checkpointing is Checkpointing.on
    tight = plan(13.5)
    assert tight.choice.checkpointing is Checkpointing.offload
    assert tight.choice.at_once < 8
    work = SMALL.work()
    sizes = [
        make_plan(work, request, budget=int(b * GB)).choice.tokens_per_microbatch
        for b in (8.0, 3.4, 2.8)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8192
    assert sizes[-1] < sizes[0]


def test_a_run_that_cannot_fit_is_told_the_cheapest_change() -> None:
    work = replace(SMALL.work(), quant=QuantConfig(), optim=OptimKind.adamw)
    with pytest.raises(DoesNotFit, match=r"at least \d+\.\d+ GB.*got 4\.00 GB; memory=qlora makes"):
        make_plan(work, SMALL.request(), budget=4 * GB)
    pinned = replace(LARGE.request(), checkpointing=Checkpointing.off)
    with pytest.raises(DoesNotFit, match=r"model\.gradient_checkpointing=auto makes it fit"):
        make_plan(LARGE.work(), pinned, budget=24 * GB)
    with pytest.raises(DoesNotFit, match="no single option makes it fit"):
        make_plan(LARGE.work(), LARGE.request(), budget=3 * GB)
    whole = replace(SMALL.request(), tokens_per_microbatch=0)
    with pytest.raises(DoesNotFit, match=r"memory\.tokens_per_microbatch=1024 makes it fit"):
        make_plan(SMALL.work(), whole, budget=int(2.8 * GB))


def test_an_engine_beside_the_trainer_keeps_its_cache_unless_it_lets_go() -> None:
    engine = replace(SMALL.work(), sampler=Sampler.vllm, releases_kv=False)
    plan = make_plan(engine, SMALL.request(), budget=24 * GB)
    (cache,) = (part for part in plan.parts if part.name.startswith("keys and values"))
    assert cache.sampling == cache.training == plan.kv_cache_bytes > 0
    # 8 completions of 64 blocks and two spare ones, 16 tokens of 28 layers x 2 x 2 x 128 x 2 bytes
    assert plan.kv_cache_bytes == (8 * 64 + 2) * 16 * 28 * 2 * 2 * 128 * 2
    released = make_plan(replace(engine, releases_kv=True), SMALL.request(), budget=24 * GB)
    assert released.training == plan.training - cache.training
    apart = make_plan(
        replace(engine, sampler=Sampler.vllm_separate), SMALL.request(), budget=24 * GB
    )
    assert apart.peak == plan.peak + engine.weight_bytes


def test_16_bits_on_the_cpu_know_no_offload_and_no_context() -> None:
    work = replace(
        SMALL.work(), on_cuda=False, dtype=torch.float32, quant=QuantConfig(kind=QuantKind.none)
    )
    plan = make_plan(work, SMALL.request(), budget=64 * GB)
    assert plan.choice.checkpointing is not Checkpointing.offload
    assert not any("CUDA" in part.name for part in plan.parts)


def test_a_run_that_goes_on_keeps_its_choice_while_it_fits(tmp_path: Path) -> None:
    work, request = SMALL.work(), SMALL.request()
    tight = make_plan(work, request, budget=int(3.4 * GB))
    record(tight, tmp_path)
    assert recorded(tmp_path) == tight.choice
    wide = make_plan(work, request, budget=80 * GB)
    assert wide.choice != tight.choice
    again = make_plan(work, request, budget=80 * GB, before=recorded(tmp_path))
    assert again.choice == tight.choice
    less = make_plan(work, request, budget=int(2.8 * GB), before=tight.choice)
    assert less.choice.tokens_per_microbatch < tight.choice.tokens_per_microbatch
    assert recorded(tmp_path / "new") is None
