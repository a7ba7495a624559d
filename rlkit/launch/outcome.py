"""This module reads how a job ended, and writes it for a process that could not."""

from __future__ import annotations

import json
import platform
import signal
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from rlkit.launch.birth import OUTPUT
from rlkit.launch.run_folder import write_status
from rlkit.tracking import Status
from rlkit.tracking.holding import InUse, hold

_DONE = "DONE"
_TAIL_BYTES = 4096


class JobState(StrEnum):
    """A job is in one of these states between two launches."""

    new = "new"
    partial = "partial"
    """Interrupted, or its process died without a word: goes on from its newest checkpoint."""
    failed = "failed"
    done = "done"


class Recorded(NamedTuple):
    """This record is the content of `status.json`; `status` is None when none can be read."""

    status: Status | None
    message: str
    pid: int
    host: str = ""
    """The machine of that process; empty in the records of older versions."""

    def is_by(self, pid: int) -> bool:
        """Return whether process `pid` of this machine wrote it; pids of two machines may agree."""
        return self.pid == pid and self.host in ("", platform.node())


def state_of(folder: Path) -> JobState:
    """Return the state of the job in `folder`, if no process is working on it."""
    if (folder / _DONE).exists():
        return JobState.done
    recorded = read_status(folder)
    if recorded.status is Status.completed:  # it died between its last word and the mark
        (folder / _DONE).touch()
        return JobState.done
    if recorded.status is Status.failed:
        return JobState.failed
    return JobState.new if recorded.status is None else JobState.partial


def read_status(folder: Path) -> Recorded:
    """Read the content of `status.json` in `folder`."""
    try:
        record = json.loads((folder / "status.json").read_text())
        return Recorded(
            Status(record["status"]),
            str(record["message"]),
            int(record["pid"]),
            str(record.get("host", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Recorded(None, "", 0)


def settle(folder: Path, *, pid: int, otherwise: Status, message: str) -> Recorded:
    """Record how process `pid` left the job in `folder`, and mark a completed job as done.

    Where that process wrote no outcome of its own, `status.json` gets `otherwise` and `message`.

    Args:
        folder: The folder of the job.
        pid: The process that has ended.
        otherwise: The status of a job that recorded no end itself.
        message: The reason for such a job.

    Returns:
        The end of the job, as it or this function recorded it.
    """
    own = read_status(folder)
    if own.is_by(pid) and own.status is Status.completed:
        (folder / _DONE).touch()
        return own
    if own.is_by(pid) and own.status in (Status.failed, Status.interrupted):
        return own
    # While another process runs this job, its record is not ours to change.
    with suppress(InUse), hold(folder):
        write_status(folder, otherwise, message=message)
    return Recorded(otherwise, message, pid)


def sign_for(folder: Path, *, pid: int) -> None:
    """Make the record that process `pid` left in `folder` this process's, which had started it."""
    recorded = read_status(folder)
    if recorded.pid == pid and recorded.status is not None:
        write_status(folder, recorded.status, message=recorded.message)


def cause_of_death(folder: Path, code: int) -> str:
    """Return one line on a process that wrote no outcome; `code` is negative for a signal."""
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    said = last_line(folder / OUTPUT)
    return f"exit code {code}: {said}" if said else f"exit code {code}"


def last_line(file: Path) -> str:
    """Return the last line with text in it, at most 300 characters; empty when there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("rlkit: ")[:300] if lines else ""


def cause(error: Exception, run_dir: Path) -> str:
    """Return one line; an error of the file system that names no file gets the run's folder."""
    line = (str(error).splitlines() or [""])[0]
    nameless = isinstance(error, OSError) and error.errno and error.filename is None
    return f"{line}: below {run_dir}" if nameless else line
