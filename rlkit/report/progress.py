"""This module says how far the jobs are that run now, for the live page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.report.job import JobRecord, State
from rlkit.report.measure import finite_mean
from rlkit.report.text import duration, fixed

_RECENT = 5
_MAX_JOBS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """This record says how far one running job is."""

    name: str
    done: int
    """Steps that are logged."""
    total: int
    """Steps that were asked for; 0 when the configuration does not say."""
    reward: str
    """Mean reward of the last steps."""
    seconds: str
    """Mean seconds of the last steps."""
    left: str
    """Time for the steps that are left at that speed, evaluations not counted."""

    @property
    def sentence(self) -> str:
        """Return it in words, as the headline of a run's page."""
        if not self.done:
            return "The run has begun; its first step is not done yet."
        of = f" of {self.total}" if self.total else ""
        return f"Step {self.done}{of}: mean reward {self.reward} over the last steps."


def progress_of(jobs: Sequence[JobRecord]) -> list[JobProgress]:
    """Return the progress of the jobs that run, in their order, at most 32 of them.

    Their names leave out what all jobs share, so that they fit on a narrow screen.
    """
    running = [job for job in jobs if job.state is State.running]
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [_progress(job, shared) for job in running[:_MAX_JOBS]]


def _progress(job: JobRecord, shared: set[str]) -> JobProgress:
    steps = job.steps.get("step")
    done = int(steps[-1]) + 1 if steps is not None and len(steps) else 0
    asked = job.config.get("steps")
    total = asked if isinstance(asked, int) else 0
    seconds = _recent(job, "time/step")
    left = seconds * (total - done) if total > done else math.nan
    return JobProgress(
        name=" ".join(word for word in job.overrides if word not in shared) or job.id,
        done=done,
        total=total,
        reward=fixed(_recent(job, "reward")),
        seconds=duration(seconds),
        left=duration(left),
    )


def _recent(job: JobRecord, metric: str) -> float:
    values = job.steps.get(metric)
    return math.nan if values is None else finite_mean(values[-_RECENT:].tolist())
