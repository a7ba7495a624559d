"""What becomes of jobs that another engine ran and that ended without a word."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path

from rich.console import Console

from rlkit.launch.engine import _watching
from rlkit.launch.rows import JobRow, JobStatus
from rlkit.launch.run_folder import write_status
from rlkit.launch.sweep_view import SweepView
from rlkit.tracking import Status


def test_a_job_that_no_process_holds_when_the_launcher_returns_was_interrupted(
    tmp_path: Path,
) -> None:
    rows = []
    for name in ("gone", "alive", "done", "waiting"):
        (tmp_path / name).mkdir()
        rows.append(JobRow(label=name, folder=tmp_path / name, steps=10))
        if name != "waiting":
            (tmp_path / name / ".lock").touch()
            write_status(tmp_path / name, Status.running, message="")
    write_status(tmp_path / "done", Status.completed, message="")
    said = io.StringIO()
    with (tmp_path / "alive" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _watching(SweepView(Console(file=said, width=200), rows, live=False)):
            pass
    statuses = {row.label: row.status for row in rows}
    assert statuses["gone"] is JobStatus.interrupted and "goes on" in rows[0].message
    assert statuses["alive"] is JobStatus.running and statuses["done"] is JobStatus.done
    assert statuses["waiting"] is JobStatus.waiting
