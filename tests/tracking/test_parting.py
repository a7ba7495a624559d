"""Steps that come again after an interruption are compared with what was on record before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tracked_run

from rlkit.tracking import Redactor, StepRecord
from rlkit.tracking.base import Level
from rlkit.tracking.fanout import Fanout
from rlkit.tracking.files import read_lines
from rlkit.tracking.local import LocalTracker
from rlkit.tracking.parting import metrics_part, rows_part


class Listener(LocalTracker):
    """A run folder that notes what is said."""

    def __init__(self, run_dir: Path, *, every: int = 1) -> None:
        super().__init__(run_dir, Redactor(), completions=True, plot=False, metrics_every=every)
        self.said: list[tuple[Level, str]] = []

    def message(self, level: Level, text: str) -> None:
        self.said.append((level, text))


def say(run_dir: Path, records: Sequence[StepRecord]) -> list[tuple[Level, str]]:
    """Record these steps; what was said about steps that came again."""
    local = Listener(run_dir)
    tracker = Fanout(local, [], Redactor())
    tracker.start(tracked_run.info(run_dir, first_step=records[0].step))
    for record in records:
        tracker.step(record)
    tracker.close(1.0)
    return [(level, text) for level, text in local.said if "came out" in text]


def records(first: int, last: int) -> list[StepRecord]:
    return [tracked_run.record(step) for step in range(first, last)]


def changed(record: StepRecord, row: int, **values: object) -> StepRecord:
    samples = list(record.samples)
    samples[row] = replace(samples[row], **values)  # type: ignore[arg-type]
    return replace(record, samples=samples)


def test_equal_steps_are_said_once(tmp_path: Path) -> None:
    assert say(tmp_path, records(0, 5)) == []
    again = "steps 2 to 4 came out as before the interruption, bit for bit"
    assert say(tmp_path, records(2, 7)) == [(Level.info, again)]


def test_a_run_that_begins_anew_is_compared_with_nothing(tmp_path: Path) -> None:
    say(tmp_path, records(0, 3))
    assert say(tmp_path, [changed(tracked_run.record(0), 0, completion="x")]) == []


def test_the_first_difference_is_said_and_no_other(tmp_path: Path) -> None:
    say(tmp_path, records(0, 5))
    three, four = (tracked_run.record(step) for step in (3, 4))
    text = three.samples[9].completion
    again = [tracked_run.record(2), changed(three, 9, completion=text[:7] + "!"), four]
    again[2] = changed(four, 0, completion="other")
    row = three.samples[9]
    where = f"prompt {row.prompt_index}, sample {row.sample_index}"
    said = f"step 3 came out otherwise than before: {where}: the completions part after 7"
    [(level, found)] = say(tmp_path, again)
    assert level is Level.warning and found == f"{said} characters"


def test_a_metric_alone_may_differ(tmp_path: Path) -> None:
    say(tmp_path, records(0, 4))
    record = tracked_run.record(2)
    metrics = {**record.metrics, "grad_norm": 0.5, "time/step": 99.0, "kl": math.nan}
    [(_, found)] = say(tmp_path, [replace(record, metrics=metrics)])
    old = record.metrics["grad_norm"]
    assert found == (
        f"step 2 came out otherwise than before: grad_norm is 0.5, not {old}, and 1 further metrics"
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("completion", "", "the completions part after 0 characters"),
        ("reward", math.nan, "the completion is the same, reward is"),
        ("components", (0.25, math.nan), "the completion is the same, components is"),
        ("sample_index", 77, "the samples are of other prompts: prompt"),
    ],
)
def test_what_differs_is_named(field: str, value: object, words: str) -> None:
    rows = tracked_run.record(1).samples
    other = changed(tracked_run.record(1), 5, **{field: value}).samples
    assert words in rows_part(rows, other)
    assert rows_part(other, other) == rows_part(rows, list(rows)) == ""  # NaN is equal to itself
    assert rows_part(rows, rows[:-1]) == "the samples are of other prompts: 48 samples, not 47"


def test_a_record_that_went_through_a_file_is_the_same(tmp_path: Path) -> None:
    """Lone surrogates and what is not finite are written otherwise than they are held."""
    odd = changed(tracked_run.record(1), 0, completion="a\ud800b", reward=math.inf)
    odd = replace(odd, metrics={**odd.metrics, "kl": math.inf, "entropy": math.nan})
    say(tmp_path, [tracked_run.record(0), odd, tracked_run.record(2)])
    assert len(said := say(tmp_path, [odd, tracked_run.record(2)])) == 1 and "as before" in str(
        said
    )


def test_samples_that_were_not_kept_leave_the_metrics(tmp_path: Path) -> None:
    say(tmp_path, records(0, 3))
    for file in (tmp_path / "completions").iterdir():
        file.write_bytes(b"no parquet")
    record = changed(tracked_run.record(2), 0, completion="another")
    assert "as before" in str(say(tmp_path, [record]))


def test_times_do_not_count() -> None:
    line: dict[str, object] = {"reward": 1.0, "time/step": 2.0, "memory/x": 1.0}
    assert metrics_part(line, {"reward": 1.0, "time/step": 3.0}) == ""
    assert metrics_part(line, {"time/step": 3.0}) == "reward is 1.0, not None"


def test_the_end_of_a_shorter_run_leaves_no_line_of_its_own(tmp_path: Path) -> None:
    """Every third step is kept, and the last one: step 4 is last only until the run goes on."""

    def steps(folder: Path, *parts: range) -> list[str]:
        for part in parts:
            local = Listener(folder, every=3)
            local.start(
                replace(tracked_run.info(folder, first_step=part.start), num_steps=part.stop)
            )
            for step in part:
                local.step(tracked_run.record(step))
            local.close(1.0)
        lines = [line["step"] for line in read_lines(folder / "metrics.jsonl")]
        files = sorted(path.stem for path in (folder / "completions").iterdir())
        return [f"{lines}", *files]

    whole = steps(tmp_path / "whole", range(10))
    assert whole[0] == "[0, 3, 6, 9]"
    assert steps(tmp_path / "parts", range(5), range(5, 10)) == whole
    # Where every step was kept before, none is dropped.
    fine = tmp_path / "fine"
    say(fine, records(0, 5))
    assert steps(fine, range(5, 10))[0] == "[0, 1, 2, 3, 4, 6, 9]"
