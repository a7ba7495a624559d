"""A run on a real terminal: Ctrl-C once and twice, and a terminal that is closed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest
from cli_process import command, environment

from rlkit.training import checkpoint

_HIDE, _SHOW = b"\x1b[?25l", b"\x1b[?25h"
OPTIONS = (
    *("model=tabular", "steps=100000", "run_dir=run", "tracker.console=live"),
    *("evaluation.every=0", "checkpoint.every=5000", "tracker.metrics_every=50"),
    *("tracker.completions=false", "tracker.plot=false", "tracker.report=false"),
)


def _own_terminal() -> None:
    """Take the terminal; under nohup, which these tests may run, SIGHUP would be ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The command line in a session of its own on a pseudo-terminal."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(*OPTIONS),
            cwd=folder,
            env={**environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:  # nobody is at the other end any more
                return
            if not data:
                return
            self.shown += data

    def finish(self) -> int:
        code = self.process.wait(60)
        self._reader.join(5)
        return code


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """One that shows a run in progress."""
    terminal = Terminal(tmp_path)
    metrics = tmp_path / "run/metrics.jsonl"
    give_up = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 3):
        assert terminal.process.poll() is None and time.monotonic() < give_up, terminal.shown
        time.sleep(0.05)
    return terminal


def status(folder: Path) -> str:
    return str(json.loads((folder / "run/status.json").read_text())["status"])


@pytest.mark.parametrize(
    "presses", [2, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 5))]
)
def test_ctrl_c_leaves_a_clean_terminal_and_a_status(
    terminal: Terminal, tmp_path: Path, presses: int
) -> None:
    for _ in range(presses):
        os.write(terminal.master, b"\x03")
        time.sleep(0.02)
    assert terminal.finish() == 130
    assert b"Traceback" not in terminal.shown and b"Exception ignored" not in terminal.shown
    assert _HIDE in terminal.shown
    assert terminal.shown.rindex(_SHOW) > terminal.shown.rindex(_HIDE), "the cursor is hidden"
    assert status(tmp_path) == "interrupted"


def test_a_closed_terminal_saves_like_sigterm(terminal: Terminal, tmp_path: Path) -> None:
    os.close(terminal.master)
    assert terminal.process.wait(60) == 130
    assert status(tmp_path) == "interrupted"
    newest, problems = checkpoint.find_newest(tmp_path / "run/checkpoints")
    assert newest is not None and problems == []
    assert checkpoint.verify(newest).step % 5000 != 0, "only the signal saves at such a step"
    assert "Traceback" not in (tmp_path / "run/log.txt").read_text()
