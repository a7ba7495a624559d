"""Masters and moments that are spread over ranks give those of one optimiser, bit for bit."""

from __future__ import annotations

import pytest
from rank_processes import run_ranks

from rlkit.ranks.deal import deal, fullest


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_spread_moments_change_no_bit_and_are_shared_out(size: int) -> None:
    found = run_ranks("rank_runs:spread", size)
    for dtype in found[0]:
        # From three ranks on gloo's order of addends depends on the place in a message.
        exact = ("same", "same_model") if size == 2 else ()
        assert all(rank[dtype][name] for name in (*exact, "resumed") for rank in found)
        norms, whole = found[0][dtype]["norms"], found[0][dtype]["whole_norms"]
        assert norms == (whole if size == 2 else pytest.approx(whole, rel=1e-5))
        entries = found[0][dtype]["entries"]
        assert entries > 10_000
        # Every entry has its moments on one rank, and no rank has nearly all of them.
        assert sum(rank[dtype]["own"] for rank in found) == entries
        assert max(rank[dtype]["own"] for rank in found) < 1.2 * entries / size
        # Masters of a 16-bit model are where their moments are; float32 has none beside the model.
        kept = [rank[dtype]["own"] if dtype == "torch.bfloat16" else 0 for rank in found]
        assert [rank[dtype]["masters"] for rank in found] == kept


def test_sums_reach_owners_and_bits_come_from_owners() -> None:
    first, second = run_ranks("rank_runs:owned", 2)
    assert first["sums"] == [[30.0] * 4]
    assert second["sums"] == [[[3.0] * 3] * 2, [[0.0, 6.0, 12.0], [3.0, 9.0, 15.0]]]
    six = 0x40C00000  # 6.0, of the second rank
    expected = [[0x7FC1, 0x7F81, -0x8000, 0x3F81], [0, 1, 2], [six, six]]
    assert first["copied"] == second["copied"] == expected


def test_the_largest_go_first_to_who_has_least() -> None:
    # 5 | 4, then 5 | 4 + 2, then 5 + 2 | 6, then 7 | 6 + 1.
    assert deal([1, 5, 4, 2, 2], 2) == [1, 0, 1, 1, 0]
    assert fullest([1, 5, 4, 2, 2], 2) == 7
    assert deal([3, 3, 3], 4) == [0, 1, 2]
    assert fullest([10, 1, 1], 3) == 10
