"""One sweep with every kind of job, made once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_sweep import FINALS, write_run, write_sweep

from rlkit.tracking import Status


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five variants x five seeds; of the last one, one job failed, runs, broke off, is missing."""
    folder = tmp_path_factory.mktemp("sweeps") / "kl_detach"
    jobs = []
    for index, (variant, finals) in enumerate(FINALS.items()):
        for seed in range(5):
            name = f"{index:06x}{seed:06x}"
            jobs.append((name, [variant, f"seed={seed}", "steps=12"]))
            if seed < len(finals):
                write_run(
                    folder / "jobs" / name,
                    seed=seed,
                    final=finals[seed],
                    kl=1.0 + index,
                    options={"kl": {"estimator": variant.partition("=")[2]}},
                    evals=(0, 4, 8, 12),
                    dead=variant == "ratio=no_detach",
                    completions=seed == 0,
                )
    broken = {
        1: (Status.failed, "OutOfMemoryError: <script>alert(1)</script> & co"),
        2: (Status.running, ""),
        3: (Status.interrupted, "SIGINT after step 4; resume=auto goes on from there"),
    }
    for seed, (status, message) in broken.items():
        write_run(
            folder / "jobs" / f"{4:06x}{seed:06x}",
            seed=seed,
            final=0.9,
            steps=5,
            status=status,
            message=message,
            evals=(0, 4),
        )
    write_sweep(folder, jobs, name="kl_detach")
    with (folder / "jobs" / f"{4:06x}{2:06x}" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the running job would
        yield folder
