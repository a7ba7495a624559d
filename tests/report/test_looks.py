"""Labels that tell values apart, styles that tell variants apart, memory that is the run's own."""

from __future__ import annotations

import math
import re

import pytest

from rlkit.assembly.worst_step import compared
from rlkit.report import svg
from rlkit.tracking.axes import X_AIR, Y_AIR, axis_scale, tick_labels
from rlkit.tracking.drawing import colour_of, marked, marker_of, new_figure, set_scales


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


def test_a_figure_has_the_ticks_and_labels_of_the_page() -> None:
    xs, ys = [0.0, 3.0, 12.0], [0.15, 0.6, 1.0]
    page = svg.axes(svg.frame(xs, ys), x_label="x")
    shown = re.findall(r'<text class="tick \w+"[^>]*>([^<]*)</text>', page)
    axis = new_figure(width=4, height=3).subplots()
    set_scales(axis, across=axis_scale(xs, air=X_AIR), up=axis_scale(ys, air=Y_AIR))
    drawn = [text.get_text() for text in (*axis.get_yticklabels(), *axis.get_xticklabels())]
    assert shown == drawn == ["0.2", "0.4", "0.6", "0.8", "1.0", "0", "5", "10"]
    assert axis.get_xlim() == pytest.approx((-0.24, 12.24))
    assert axis.get_ylim() == pytest.approx((0.1075, 1.0425))


def test_steps_have_whole_ticks() -> None:
    assert axis_scale([0, 1, 2], air=X_AIR, whole=True).ticks == (0, 1, 2)
    assert axis_scale([0], air=X_AIR, whole=True).ticks == (0,)
    assert axis_scale([math.nan], air=0.0).labels == ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")


def test_markers_of_curves_on_top_of_each_other_are_shifted() -> None:
    assert marked(0, 20, markers=5) == [0, 4, 8, 12, 16, 19]
    assert marked(1, 20, markers=5) == [1, 5, 9, 13, 17, 19]
    assert marked(3, 0, markers=5) == []
