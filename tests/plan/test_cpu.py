"""A CPU's plan: the prompts that a run has, prompts once a group, and what evaluations score."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, QuantConfig
from rlkit.plan.headline import ROWS
from rlkit.plan.parts import LIBRARY_BYTES, Choice, parts_of
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind


def cpu_work() -> Work:
    """Six prompts of which the longest has 86 of 512 tokens, eight samples of 32 tokens each."""
    return replace(
        ROWS[0].work(),
        dtype=torch.float32,
        quant=QuantConfig(),
        optim=OptimKind.adamw,
        sampler=Sampler.hf,
        kv_value_bytes=4,
        num_prompts=6,
        group_size=8,
        max_prompt=512,
        max_completion=32,
        max_at_once=48,
        on_cuda=False,
        longest_prompt=86,
    )


CHOICE = Choice(8192, Checkpointing.off, 2**28, 48)


def test_a_step_holds_its_prompts_once_a_group() -> None:
    work = cpu_work()
    assert work.step_tokens == 6 * 86 + 48 * 32
    assert replace(work, shares_prompts=False).step_tokens == 48 * (86 + 32)
    assert replace(work, sampled_tokens=493).step_tokens == 6 * 86 + 493
    assert replace(work, longest_prompt=None).step_tokens == 6 * 512 + 48 * 32
    # A card tries rows of full length before the first step, so its plan is for those.
    assert replace(work, on_cuda=True).step_tokens == 48 * (512 + 32)


def test_keys_and_values_are_for_the_prompts_that_come() -> None:
    parts = {p.name: p for p in parts_of(cpu_work(), ROWS[0].request(), CHOICE)}
    kv = parts["keys and values (48 x 118 tokens)"]
    # 28 layers, 2 heads of 128, keys and values in float32; 118 tokens are 4 blocks of 32.
    assert kv.sampling == (48 * 4 + 2) * 32 * (2 * 28 * 2 * 128 * 4)
    assert parts["libraries"].training == LIBRARY_BYTES
    assert any("(2052 tokens)" in name for name in parts)


def test_an_evaluation_counts_beyond_sampling() -> None:
    work = replace(cpu_work(), eval_prompts=64, eval_samples=2)
    bytes_of_states = 2 * 8192 * 1536 * 4
    assert work.evaluation_bytes(8192, workspace_bytes=2**28) == (
        work.prefill_bytes(8192) + bytes_of_states + 2**28
    )
    few = replace(work, eval_prompts=1, eval_samples=1)
    tokens, rows = 86 + 32, 2 * 32  # policy and reference
    assert few.evaluation_bytes(8192, workspace_bytes=2**60) == (
        few.prefill_bytes(tokens)
        + 2 * tokens * 1536 * 4
        + rows * 3 * 4 * 151936  # logits and two passes over them
    )
    without = sum(p.sampling for p in parts_of(cpu_work(), ROWS[0].request(), CHOICE))
    with_it = sum(p.sampling for p in parts_of(work, ROWS[0].request(), CHOICE))
    beside = [p for p in parts_of(work, ROWS[0].request(), CHOICE) if "sampl" in p.name]
    sampling = sum(p.sampling for p in beside if p.name != "evaluation, beyond sampling")
    kv = next(p.sampling for p in parts_of(work, ROWS[0].request(), CHOICE) if "keys" in p.name)
    needed = work.evaluation_bytes(8192, workspace_bytes=CHOICE.workspace_bytes)
    assert with_it - without == max(0, needed - sampling - kv)


def test_an_adapter_that_trains_on_is_there_twice() -> None:
    """The second is the reference policy; it has neither gradients nor moments."""
    work = cpu_work()
    kept, request = replace(work, keeps_first_adapter=True), ROWS[0].request()
    one, two = (sum(p.sampling for p in parts_of(w, request, CHOICE)) for w in (work, kept))
    assert two - one == 4 * work.num_adapter > 0
