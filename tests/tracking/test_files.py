"""Nothing half-written: real full disks, torn lines, odd numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tracked_run import file_size_limit

from rlkit.tracking.base import TrackingError
from rlkit.tracking.files import JsonLines, comparable, encode, number, read_lines, write_atomic


def test_encode_is_strict_sorted_json() -> None:
    line = encode({"b": math.nan, "a": [1.5, math.inf, -math.inf], "é": {"x": 1}})
    assert line == '{"a": [1.5, "Infinity", "-Infinity"], "b": null, "é": {"x": 1}}'


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan, 2**53, 3])
def test_numbers_survive_the_round_trip(value: float) -> None:
    back = number(json.loads(encode({"x": value}))["x"])
    assert math.isnan(back) if math.isnan(value) else back == value
    assert math.copysign(1, back) == math.copysign(1, value)


def test_number_refuses_what_is_none() -> None:
    with pytest.raises(TypeError, match="not a number"):
        number([1])
    with pytest.raises(ValueError):
        number("abc")


def test_comparable_drops_exactly_what_depends_on_the_machine() -> None:
    line = {"reward": 1.0, "time/step": 2, "memory/rss_bytes": 3, "speed/x": 4, "timeout": 5}
    assert comparable(line) == {"reward": 1.0, "timeout": 5}


def test_write_atomic_replaces_or_leaves_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    with file_size_limit(1000), pytest.raises(TrackingError, match=r"cannot write .*a\.bin: File"):
        write_atomic(path, b"x" * 5000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_write_atomic_names_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="Not a directory"):
        write_atomic(tmp_path / "file" / "a", b"")


def test_append_writes_the_whole_line_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path, kept=[])
    lines.append({"step": 0})
    with file_size_limit(40), pytest.raises(TrackingError, match="File too large") as caught:
        lines.append({"step": 1, "padding": "x" * 100})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b'{"step": 0}\n'
    lines.append({"step": 1})
    assert read_lines(path) == [{"step": 0}, {"step": 1}]


def test_reopening_drops_a_torn_last_line_and_what_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "rew')
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2]
    lines = JsonLines(path, kept=read_lines(path)[:2])
    lines.append({"step": 2, "again": True})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"again": true, "step": 2}\n'


@pytest.mark.parametrize("bad", ["{oops}", "[1, 2]"])
def test_damage_in_the_middle_is_reported_with_its_line(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 0}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(TrackingError, match=r"m\.jsonl line 2 is no JSON"):
        read_lines(path)


def test_a_file_of_one_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step"')
    assert read_lines(path) == []
    assert read_lines(tmp_path / "absent.jsonl") == []
