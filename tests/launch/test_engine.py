"""What becomes of jobs that another engine ran and that ended without a word."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path

from rich.console import Console

from rlkit.launch.board import Board
from rlkit.launch.engine import _watching
from rlkit.launch.rows import Row, Stand
from rlkit.launch.run_folder import write_status
from rlkit.tracking import Status


def test_a_job_that_no_process_holds_when_the_launcher_returns_was_interrupted(
    tmp_path: Path,
) -> None:
    rows = []
    for name in ("gone", "alive", "done", "waiting"):
        (tmp_path / name).mkdir()
        rows.append(Row(label=name, folder=tmp_path / name, steps=10))
        if name != "waiting":
            (tmp_path / name / ".lock").touch()
            write_status(tmp_path / name, Status.running, message="")
    write_status(tmp_path / "done", Status.completed, message="")
    said = io.StringIO()
    with (tmp_path / "alive" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _watching(Board(Console(file=said, width=200), rows, live=False)):
            pass
    stands = {row.label: row.stand for row in rows}
    assert stands["gone"] is Stand.interrupted and "goes on" in rows[0].message
    assert stands["alive"] is Stand.running and stands["done"] is Stand.done
    assert stands["waiting"] is Stand.waiting
