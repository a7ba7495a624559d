"""This module says where the time of each arm went, and how much memory it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.report.arms import Arm
from rlkit.report.job import JobRecord
from rlkit.report.measure import finite_mean
from rlkit.tracking import Phase

PHASES = (*(phase.value for phase in Phase if phase is not Phase.evaluate), "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """These are means over the jobs of an arm that have steps; NaN where nothing was measured."""

    arm: Arm
    step_seconds: float
    phases: dict[str, float]
    """Seconds a step of each phase."""
    tokens_per_second: float
    memory_bytes: float
    """Largest of any job: the allocator's peak on CUDA, resident memory otherwise."""
    on_device: bool
    """Whether `memory_bytes` is the GPU's."""
    total_seconds: float
    """Training time of one job, evaluations excluded."""
    samples: float
    """Completions sampled for one job's training."""

    @property
    def shares(self) -> list[tuple[str, float]]:
        total = sum(value for value in self.phases.values() if math.isfinite(value))
        if not total:
            return []
        return [(n, max(0.0, v) / total) for n, v in self.phases.items() if math.isfinite(v)]


def costs(arms: Sequence[Arm]) -> list[Cost]:
    """Return one `Cost` for each arm with steps."""
    return [_cost(arm, jobs) for arm in arms if (jobs := [j for j in arm.jobs if _has_steps(j)])]


def _cost(arm: Arm, jobs: Sequence[JobRecord]) -> Cost:
    on_device = any("memory/cuda_peak_bytes" in job.steps for job in jobs)
    name = "memory/cuda_peak_bytes" if on_device else "memory/rss_bytes"
    peaks = [float(np.nanmax(job.steps[name])) for job in jobs if name in job.steps]
    done = [job for job in jobs if job.done] or jobs
    return Cost(
        arm=arm,
        step_seconds=_mean(done, "time/step"),
        phases={phase: _mean(done, f"time/{phase}") for phase in PHASES},
        tokens_per_second=_mean(done, "speed/tokens_per_second"),
        memory_bytes=max(peaks, default=math.nan),
        on_device=on_device,
        total_seconds=finite_mean([_training_seconds(job) for job in done]),
        samples=finite_mean([float(job.steps["samples"][-1]) for job in done]),
    )


def _mean(jobs: Sequence[JobRecord], name: str) -> float:
    return finite_mean([_mean_of(job, name) for job in jobs if name in job.steps])


def _mean_of(job: JobRecord, name: str) -> float:
    """Return the mean over steps; a logged step stands for those since the one before as well."""
    column = job.steps[name]
    weights = np.diff(job.steps["step"], prepend=-1.0)
    known = np.isfinite(column)
    if not known.any():
        return math.nan
    return float(np.average(column[known], weights=weights[known]))


def _training_seconds(job: JobRecord) -> float:
    """Return the last evaluation's count; without one, the sum over the logged steps."""
    if job.evals and job.evals[-1].step == job.steps["step"][-1] + 1:
        return job.evals[-1].metrics.get("time/train", float(job.steps["seconds"][-1]))
    return float(job.steps["seconds"][-1])


def _has_steps(job: JobRecord) -> bool:
    return len(job.steps.get("step", ())) > 0
