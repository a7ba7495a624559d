"""The cost of a sweep beyond its jobs: `python tests/support/sweep_cost.py [SEEDS]`.

The same tabular jobs twice: one after another in one process that has imported everything, which is
what the jobs themselves cost; and as a sweep, launcher, preflight, imports and processes included.
Seconds on a clock and seconds of CPU; the latter do not depend on what else the machine does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cli_process import command, environment

KLS = "none,reverse_k1,reverse_k2,reverse_k3,forward_k3"


def arguments(seeds: int) -> list[str]:
    """A grid of 5 x `seeds` jobs of a second or two."""
    return [
        "-m",
        "model=tabular",
        "steps=100",
        "evaluation.every=50",
        f"kl={KLS}",
        f"seed=range({seeds})",
    ]


def alone(folder: Path, seeds: int) -> dict[str, float]:
    """The jobs one after another in this process."""
    from rlkit.assembly import assemble  # noqa: F401  (imports are not the jobs')
    from rlkit.launch.composing import register
    from rlkit.launch.job import run_job
    from rlkit.launch.preflight import preflight

    register()
    configs = preflight(arguments(seeds))
    for i, config in enumerate([configs[0], *configs]):
        if i == 1:  # the first warms torch up
            clock, cpu = time.perf_counter(), time.process_time()
        job = replace(config, run_dir=str(folder / str(i)))
        with contextlib.redirect_stdout(io.StringIO()):
            assert run_job(job, run_dir=Path(job.run_dir)) == 0
    return {
        "jobs": len(configs),
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }


def sweep(folder: Path, seeds: int) -> dict[str, float]:
    """The same jobs through the command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.perf_counter()
    subprocess.run(command(*arguments(seeds)), cwd=folder, env=environment(), check=True)
    seconds = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def measure(seeds: int) -> dict[str, float]:
    """Both, and the ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = sweep(folder, seeds)
        jobs = alone(folder / "alone", seeds)
    return {
        "jobs": jobs["jobs"],
        "cores": len(os.sched_getaffinity(0)),
        "jobs_seconds": round(jobs["seconds"], 1),
        "sweep_seconds": round(whole["seconds"], 1),
        "jobs_cpu_seconds": round(jobs["cpu_seconds"], 1),
        "sweep_cpu_seconds": round(whole["cpu_seconds"], 1),
        "clock_ratio": round(whole["seconds"] / jobs["seconds"], 3),
        "cpu_ratio": round(whole["cpu_seconds"] / jobs["cpu_seconds"], 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20), indent=2))
