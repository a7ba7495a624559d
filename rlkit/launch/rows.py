"""A row is one job as a sweep shows it: its overrides, its state and its end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from rlkit.launch.sweep_folder import Job
from rlkit.runtime.redact import Redactor
from rlkit.tracking.files import number

_TAIL_BYTES = 1 << 16


class JobStatus(StrEnum):
    """A job has one of these states in this launch."""

    waiting = "waiting"
    running = "running"
    done = "done"
    earlier = "done before"
    """Finished by an earlier launch: skipped."""
    failed = "failed"
    failed_earlier = "failed before"
    """Failed in an earlier launch and not retried."""
    interrupted = "interrupted"


OVER = (
    JobStatus.done,
    JobStatus.earlier,
    JobStatus.failed,
    JobStatus.failed_earlier,
    JobStatus.interrupted,
)
FAILED = (JobStatus.failed, JobStatus.failed_earlier)


@dataclass(kw_only=True, slots=True)
class JobRow:
    """A row is what the launcher knows of a job.

    `read_progress` brings step and reward up to date.
    """

    label: str
    """The overrides that tell it from the other jobs."""
    folder: Path
    steps: int
    status: JobStatus = JobStatus.waiting
    step: int = 0
    reward: float | None = None
    gpu: str = ""
    message: str = ""
    began: float = 0.0
    """Monotonic seconds."""
    seconds: float = 0.0
    """It ran for, in this launch."""
    cpu_seconds: float = 0.0
    first_step: int = field(default=0)
    """Steps that an earlier launch had done."""

    def read_progress(self) -> None:
        """Read the newest line of the job's metrics."""
        line = _last_record(self.folder / "metrics.jsonl")
        if line is not None:
            self.step = int(number(line["step"])) + 1
            self.reward = number(line.get("reward"))

    def elapsed(self) -> float:
        """Return seconds of this launch, up to now for a running job."""
        return time.monotonic() - self.began if self.status is JobStatus.running else self.seconds


def labels(jobs: Sequence[Job]) -> list[str]:
    """Return for each job the overrides that not all share, or all of them for a single job."""
    seen = Counter(override for job in jobs for override in set(job.overrides))
    redactor = Redactor.of_process()
    texts = []
    for job in jobs:
        own = [o for o in job.overrides if seen[o] < len(jobs)]
        texts.append(redactor.text(" ".join(own or job.overrides)) or "defaults")
    return texts


def seconds_left(rows: Sequence[JobRow], *, slots: int) -> float | None:
    """Return the seconds left, from the mean time of the finished jobs; None before the first."""
    finished = [row.seconds for row in rows if row.status is JobStatus.done]
    if not finished:
        return None
    typical = sum(finished) / len(finished)
    work = sum(typical for row in rows if row.status is JobStatus.waiting)
    running = [row for row in rows if row.status is JobStatus.running]
    work += sum(max(0.0, typical - row.elapsed()) for row in running)
    return work / max(1, min(slots, sum(r.status not in OVER for r in rows)))


def _last_record(file: Path) -> dict[str, object] | None:
    """Return the last whole line of a JSON-lines file; None when there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().rpartition(b"\n")[0].splitlines()
        record = json.loads(lines[-1])
    except (OSError, IndexError, ValueError):
        return None
    return record if isinstance(record, dict) and "step" in record else None
