"""The curves show the numbers of `metrics.jsonl`, and colours that everyone can tell apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tracked_run
from matplotlib.colors import to_rgb

from rlkit.tracking import Outcome, Redactor, Status, StepRecord, read_metrics
from rlkit.tracking.drawing import PALETTE
from rlkit.tracking.local import LocalTracker
from rlkit.tracking.plot import _figure, draw_curves


def finished(run_dir: Path, *, steps: int = 6, status: Status = Status.completed) -> Path:
    tracker = LocalTracker(run_dir, Redactor(), completions=False, plot=True)
    tracker.start(replace(tracked_run.info(run_dir), model="a$b_{c^$ $\\frac"))
    for step in range(steps):
        metrics = dict(tracked_run.record(step).metrics)
        if step == 2:
            metrics |= {"kl": math.nan, "grad_norm": math.inf}
        tracker.step(StepRecord(step=step, metrics=metrics))
    tracker.finish(Outcome(status=status, wall_seconds=1.0))
    tracker.close(1.0)
    return run_dir


def test_files_are_a_picture_and_a_drawing(tmp_path: Path) -> None:
    finished(tmp_path)
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape == (845, 1300, 4)
    ink = np.any(image[..., :3] < 0.99, axis=-1)
    assert all(
        ink[top : top + 420, left : left + 650].mean() > 0.01
        for top, left in itertools.product((0, 420), (0, 650))
    )
    assert (tmp_path / "curves.svg").read_text().rstrip().endswith("</svg>")
    assert "not drawn" not in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob(".*partial"))


def test_lines_are_the_metrics_and_gaps_are_gaps(tmp_path: Path) -> None:
    lines = read_metrics(finished(tmp_path))
    axes = _figure(lines, tracked_run.REWARDS, "t").axes
    drawn = [
        ("reward", axes[0].lines[0]),
        ("rewards/correctness/mean", axes[0].lines[1]),
        ("rewards/tag_format/mean", axes[0].lines[2]),
        ("kl", axes[1].lines[0]),
        ("completions/mean_length", axes[2].lines[0]),
        ("grad_norm", axes[3].lines[0]),
    ]
    for name, line in drawn:
        expected = [tracked_run.record(step).metrics[name] for step in range(6)]
        if name in ("kl", "grad_norm"):
            expected[2] = math.nan
        assert list(line.get_xdata()) == list(range(6))
        assert list(line.get_ydata()) == pytest.approx(expected, nan_ok=True, abs=0)
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["reward (weighted sum)", "± std in a group", "correctness", "tag_format"]


@pytest.mark.parametrize("status", [Status.interrupted, Status.completed])
def test_a_run_without_steps_has_no_curves(tmp_path: Path, status: Status) -> None:
    finished(tmp_path, steps=0, status=status)
    assert draw_curves(tmp_path, tracked_run.REWARDS, title="t") == []
    assert not (tmp_path / "curves.png").exists()


def test_a_picture_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "curves.png").mkdir(parents=True)
    finished(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "WARNING rlkit.tracking.local: the curves were not drawn" in log
    assert "completed after" in log


# Machado, Oliveira, Fernandes 2009, severity 1.0, in linear RGB.
_BLINDNESS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}


@pytest.mark.parametrize("kind", _BLINDNESS)
def test_colours_differ_for_the_colour_blind(kind: str) -> None:
    def seen(colour: str) -> tuple[float, ...]:
        linear = [
            ((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in to_rgb(colour)
        ]
        mixed = (sum(m * c for m, c in zip(row, linear, strict=True)) for row in _BLINDNESS[kind])
        return tuple(max(0.0, value) ** (1 / 2.4) for value in mixed)

    for one, other in itertools.combinations([c.paper for c in PALETTE], 2):
        assert math.dist(seen(one), seen(other)) > 0.12, (one, other)


def test_a_dozen_reward_functions_have_lines_of_their_own(tmp_path: Path) -> None:
    names = [f"f{k}" for k in range(12)]
    line = {"step": 0.0, "reward": 1.0} | {f"rewards/{name}/mean": 1.0 for name in names}
    drawn = _figure([line], names, "t").axes[0].lines
    assert [drawn[0].get_color(), len(drawn)] == ["#000000", 13]
    looks = {(line.get_color(), line.get_marker()) for line in drawn}
    assert len(looks) == 13
    assert [line.get_color() for line in drawn].count("#000000") == 1
