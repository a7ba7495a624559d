from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_batch

from rlkit.training.microbatch import microbatches
from rlkit.types import RolloutBatch


def batch_of(
    lengths: list[int], *, groups: list[int] | None = None, prompt: int = 2
) -> RolloutBatch:
    batch = make_batch([[3] * prompt for _ in lengths], [[4] * n for n in lengths])
    if groups is not None:
        batch.group_ids.copy_(torch.tensor(groups))
    return batch


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=2, max_size=24).filter(
        lambda rows: len(rows) % 2 == 0
    ),
    st.integers(1, 200),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_every_row_once_in_order_units_whole_budget_kept(
    rows: list[tuple[int, int]], budget: int, unit: int, share: bool
) -> None:
    lengths, groups = [n for n, _ in rows], [g for _, g in rows]
    batch = batch_of(lengths, groups=groups)
    plan = microbatches(batch, max_tokens=budget, rows_per_unit=unit, share_prompts=share)
    assert torch.cat(plan).tolist() == list(range(len(lengths)))

    def tokens(index: list[int]) -> int:
        prompts = len({groups[i] for i in index}) if share else len(index)
        return sum(lengths[i] for i in index) + 2 * prompts

    for index in (rows.tolist() for rows in plan):
        assert len(index) % unit == 0
        assert tokens(index) <= budget or len(index) == unit


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=9),
    st.integers(1, 90),
    st.booleans(),
)
def test_as_few_as_the_budget_allows_and_then_as_even_as_can_be(
    rows: list[tuple[int, int]], budget: int, share: bool
) -> None:
    """Against every way to cut the rows."""
    lengths, groups = [n for n, _ in rows], [g for _, g in rows]

    def sizes(cuts: tuple[int, ...]) -> list[int]:
        ends = [0, *cuts, len(rows)]
        parts = [range(a, b) for a, b in pairwise(ends)]
        tokens = [
            sum(lengths[i] for i in part)
            + 2 * (len({groups[i] for i in part}) if share else len(part))
            for part in parts
        ]
        fits = all(t <= budget or len(part) == 1 for t, part in zip(tokens, parts, strict=True))
        return tokens if fits else []

    inner = range(1, len(rows))
    every = [sizes(cuts) for n in range(len(rows)) for cuts in combinations(inner, n)]
    allowed = [found for found in every if found]
    fewest = min(map(len, allowed))
    best = min(max(found) for found in allowed if len(found) == fewest)
    plan = microbatches(batch_of(lengths, groups=groups), max_tokens=budget, share_prompts=share)
    cuts = tuple(int(rows[0]) for rows in plan[1:])
    assert len(plan) == fewest
    assert max(sizes(cuts)) == best


def test_padding_costs_nothing() -> None:
    # 18 + 2 and 3 + 2 tokens: 25 in all, 40 if the short row were padded.
    plan = microbatches(batch_of([18, 3]), max_tokens=25)
    assert [rows.tolist() for rows in plan] == [[0, 1]]


def test_a_shared_prompt_costs_once_in_each_micro_batch() -> None:
    batch = batch_of([5, 5, 5, 5], groups=[0, 0, 0, 1], prompt=10)
    shared = microbatches(batch, max_tokens=25)
    assert [rows.tolist() for rows in shared] == [[0, 1, 2], [3]]
    alone = microbatches(batch, max_tokens=25, share_prompts=False)
    assert [rows.tolist() for rows in alone] == [[0], [1], [2], [3]]


def test_no_budget_means_no_split() -> None:
    assert [rows.tolist() for rows in microbatches(batch_of([9, 1]), max_tokens=0)] == [[0, 1]]


def test_refuses_a_broken_unit() -> None:
    with pytest.raises(ValueError, match="3 rows do not split into units of 2"):
        microbatches(batch_of([1, 2, 3]), max_tokens=10, rows_per_unit=2)
