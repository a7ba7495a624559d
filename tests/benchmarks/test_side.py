"""Children of a benchmark: their result, or why there is none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_side_ends_with_the_benchmark(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM is what `timeout` sends; after SIGKILL the side sees that its input has ended."""
    busy = (
        "import os, time; from benchmarks.side import wait_for_turn; wait_for_turn(); "
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    benchmark = (
        "import sys; from pathlib import Path; from benchmarks.ending import exit_on_sigterm; "
        "from benchmarks.side import Side, memory_folder; exit_on_sigterm(); "
        "busy, log = sys.argv[1:]; room = memory_folder(); print(room.name, flush=True); "
        "side = Side('a', 'timeit', ['-n1', '-r1', busy], log=Path(log), environment={}); "
        "side.finish(timeout_s=600)"
    )
    command = [sys.executable, "-c", benchmark, busy, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        room = Path(process.stdout.readline().strip())
        side = psutil.Process(int(process.stdout.readline().removeprefix("a: ")))
        assert room.is_dir()
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    end = time.monotonic() + 60
    while side.is_running() and side.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the side must end with its parent"
        time.sleep(0.05)
    if number == signal.SIGTERM:
        assert not room.exists()
    else:
        room.rmdir()
