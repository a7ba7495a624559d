"""The seconds of messages are told apart from the seconds that a rank waits for the others."""

from __future__ import annotations

import pytest
from rank_processes import run_ranks, same_on_all

from rlkit.ranks.spans import costs


def test_the_last_rank_of_each_call_waits_for_nobody() -> None:
    # Call 1: rank 1 came last; call 2: rank 0. Rank 0 waited 0.3 s, rank 1 0.1 s.
    found = costs([[0.31, 0.02], [0.01, 0.12]])
    assert found == pytest.approx({"time/ranks": 0.03, "time/ranks/wait": 0.3})
    assert costs([[], []]) == {"time/ranks": 0.0, "time/ranks/wait": 0.0}


def test_a_slow_rank_is_waiting_and_not_messages() -> None:
    found = same_on_all(run_ranks("rank_runs:slow_second", 2))
    assert found["time/ranks/wait"] == pytest.approx(0.4, abs=0.1)
    assert 0.0 < found["time/ranks"] < 0.1
