"""How completions are cut into batches and prompts laid out."""

from __future__ import annotations

import random

import torch

from rlkit.generation.batching import (
    common_prefix_length,
    make_rows,
    plan_prefill,
    split_rows,
)
from rlkit.types import Prompt


def prompts_of(lengths: list[int]) -> list[Prompt]:
    return [Prompt(index=n, ids=tuple(range(k)), text="") for n, k in enumerate(lengths)]


def test_every_completion_is_in_one_batch_within_the_limits() -> None:
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 9))]
        num_samples, completion = draw.randint(1, 6), draw.randint(1, 20)
        max_rows, max_tokens = draw.randint(1, 12), draw.randint(1, 400)
        seeds = [[0] * num_samples for _ in lengths]
        rows = make_rows(prompts_of(lengths), num_samples=num_samples, seeds=seeds)
        batches = split_rows(
            rows, max_completion_length=completion, max_rows=max_rows, max_tokens=max_tokens
        )
        seen = [(row.prompt_number, row.sample_index) for batch in batches for row in batch]
        assert sorted(seen) == [(p, s) for p in range(len(lengths)) for s in range(num_samples)]
        for batch in batches:
            assert 1 <= len(batch) <= max_rows
            tokens = len(batch) * (max(len(row.prompt.ids) for row in batch) + completion)
            assert tokens <= max_tokens or len(batch) == 1


def test_batches_are_balanced() -> None:
    rows = make_rows(prompts_of([5] * 65), num_samples=1, seeds=[[0]] * 65)
    batches = split_rows(rows, max_completion_length=5, max_rows=64, max_tokens=10**6)
    assert [len(batch) for batch in batches] == [33, 32]


def test_common_prefix_leaves_every_prompt_a_token() -> None:
    assert common_prefix_length([(1, 2, 3), (1, 2, 4)]) == 2
    assert common_prefix_length([(1, 2, 3), (1, 2, 3, 4)]) == 2
    assert common_prefix_length([(1,), (1, 2)]) == 0
    assert common_prefix_length([(5, 2), (1, 2)]) == 0
    assert common_prefix_length([(1, 2, 3, 4), (1, 9, 3, 4), (1, 2, 3, 5)]) == 1


def test_prefill_columns_hold_the_token_of_their_position() -> None:
    draw = random.Random(0)
    for _ in range(100):
        shared = tuple(draw.randrange(1, 99) for _ in range(draw.randint(0, 9)))
        tails = [tuple(draw.choices(range(1, 99), k=draw.randint(1, 7))) for _ in range(5)]
        prompts = [shared + tail for tail in tails]
        plan = plan_prefill(prompts, prefix_length=len(shared), device=torch.device("cpu"))
        cached = torch.tensor(shared, dtype=torch.long)[plan.prefix_columns]
        columns = torch.cat([cached, plan.input_ids], dim=1)
        for prompt, row, pad in zip(prompts, columns.tolist(), plan.pads.tolist(), strict=True):
            assert tuple(row[pad:]) == prompt
        visible = columns >= 0 if plan.mask is None else plan.mask
        assert visible.sum(dim=1).tolist() == [len(prompt) for prompt in prompts]
        assert plan.num_columns == columns.shape[1]
