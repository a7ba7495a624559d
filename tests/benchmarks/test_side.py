"""Children of a benchmark: their result, or why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.side import Result, Side


def outcome(code: str, log: Path, *, timeout_s: float = 60.0) -> Result:
    """What a side hands over whose module runs `code` once."""
    side = Side("a", "timeit", ["-n1", "-r1", code], log=log, environment={"LEFT": "7"})
    return side.finish(timeout_s=timeout_s)


def test_a_side_is_shown_and_hands_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os; from benchmarks.side import hand_over, wait_for_turn; wait_for_turn(); "
        "print('half way', flush=True); hand_over({'left': os.environ['LEFT']})"
    )
    assert outcome(code, tmp_path / "log") == {"left": "7"}
    assert capsys.readouterr().out.startswith("a: half way\n")


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    found = outcome("raise MemoryError('8 GB')", tmp_path / "log")
    assert found == {"error": "exit code 1: MemoryError: 8 GB"}
    found = outcome("import time; time.sleep(60)", tmp_path / "log", timeout_s=0.5)
    assert found == {"error": "no result within 0.5 s"}
