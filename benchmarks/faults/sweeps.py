"""F20: launchers of sweeps are killed at random moments and started again."""

from __future__ import annotations

from pathlib import Path

from sweep_kills import campaign

from benchmarks.faults.row import Row
from benchmarks.faults.runs import forks


def run(count: int, folder: Path) -> Row:
    """Kill launchers `count` times by SIGKILL, SIGTERM or SIGINT, over as many sweeps as it takes.

    Lost is each finished job that was touched again, each process that lived on, each job that
    differs from that of an undisturbed sweep and each that was not done in the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally = campaign(count, forks=forks(), folder=folder, seed=20)
    injected = sum(tally.kills.values())
    lost = (
        tally.finished_jobs_touched + tally.orphans + tally.jobs_that_differ + tally.jobs_not_done
    )
    kinds = ", ".join(f"{name} {number}" for name, number in sorted(tally.kills.items()))
    note = (
        f"{kinds}; {tally.sweeps} sweeps of 8 jobs, {tally.kills_with_jobs_running} kills with "
        f"jobs running; {tally.finished_jobs_touched} finished jobs touched, {tally.orphans} "
        f"processes left, {tally.jobs_that_differ} jobs differ"
    )
    return Row("F20 killed sweep launchers", injected, injected - min(lost, injected), lost, note)
