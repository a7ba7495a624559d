from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlkit.microbatch import microbatches


def masks(lengths: list[int]) -> tuple[Tensor, Tensor]:
    prompt = torch.ones(len(lengths), 2, dtype=torch.bool)
    completion = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return prompt, completion


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=24).filter(lambda x: len(x) % 2 == 0),
    st.integers(1, 200),
    st.sampled_from([1, 2]),
)
def test_every_row_once_units_whole_budget_kept(lengths: list[int], budget: int, unit: int) -> None:
    plan = microbatches(*masks(lengths), max_tokens=budget, rows_per_unit=unit)
    assert sorted(torch.cat(plan).tolist()) == list(range(len(lengths)))
    for rows in plan:
        assert len(rows) % unit == 0
        pairs = rows.view(-1, unit)
        assert (pairs[:, 0] % unit == 0).all()
        assert (pairs - pairs[:, :1] == torch.arange(unit)).all()
        longest = max(lengths[i] + 2 for i in rows.tolist())
        assert len(rows) * longest <= budget or len(rows) == unit


def test_one_microbatch_keeps_the_order_of_rows() -> None:
    plan = microbatches(*masks([1, 5, 3]), max_tokens=1000)
    assert [rows.tolist() for rows in plan] == [[0, 1, 2]]


def test_long_and_short_rows_do_not_pad_each_other() -> None:
    # 18 + 2 prompt tokens fill the budget alone; the three short rows share the next micro-batch.
    plan = microbatches(*masks([1, 18, 2, 3]), max_tokens=20)
    assert [rows.tolist() for rows in plan] == [[1], [0, 2, 3]]


def test_no_budget_means_no_split() -> None:
    assert [rows.tolist() for rows in microbatches(*masks([9, 1]), max_tokens=0)] == [[0, 1]]


def test_refuses_a_broken_unit() -> None:
    with pytest.raises(ValueError, match="3 rows do not split into units of 2"):
        microbatches(*masks([1, 2, 3]), max_tokens=10, rows_per_unit=2)
