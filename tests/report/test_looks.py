"""Labels that tell values apart, styles that tell variants apart, memory that is the run's own."""

from __future__ import annotations

import pytest

from rlkit.assembly.worst_step import compared
from rlkit.tracking.axes import tick_labels
from rlkit.tracking.drawing import colour_of, marker_of


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([1.0, 1.00001, 1.00002], ["1.00000", "1.00001", "1.00002"]),
        ([1.0, 1.0 + 1e-9], ["1", "+1e-09"]),
        ([1e6, 1e6 + 1], ["1000.000k", "1000.001k"]),
        ([1e-4, 1.5e-4], ["1.0e-04", "1.5e-04"]),
    ],
)
def test_no_two_ticks_have_one_label(values: list[float], labels: list[str]) -> None:
    assert tick_labels(values) == labels


def test_colour_and_marker_repeat_after_49_variants() -> None:
    looks = [(colour_of(style), marker_of(style)) for style in range(50)]
    assert len(set(looks)) == 49 and looks[49] == looks[0]


def test_memory_of_other_processes_is_not_called_the_runs() -> None:
    gb = 10**9
    alone = compared(8 * gb, on_device=7 * gb, of_process=int(6.5 * gb))
    assert alone == "memory: planned at most 8.00 GB, taken 7.00 GB (88% of it)"
    shared = compared(8 * gb, on_device=22 * gb, of_process=6 * gb)
    assert "taken 6.00 GB (75% of it) by this process; 16.00 GB more" in shared
