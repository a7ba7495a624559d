"""Random kills of sweep launchers: `python tests/support/sweep_kills.py 50` runs the long campaign.

A sweep of tiny jobs is started again and again and its launcher killed at a random moment, until
all jobs are done; then the next sweep begins, until there were enough kills. Counted are finished
jobs that a later launch touched, processes that outlived their launcher, jobs whose metrics differ
from those of an undisturbed sweep, and jobs that were not done in the end.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from warm_cli import Forks, Run

from rlkit.tracking import comparable, read_metrics

JOBS = [
    "model=tabular",
    "steps=60",
    "checkpoint.every=10",
    "evaluation.every=0",
    "kl=none,reverse_k3",
    "seed=0,1,2,3",
]
NUM_JOBS = 8
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_PATIENCE_S = 300


@dataclass
class Tally:
    """The findings of a campaign; all but the first three must stay 0."""

    kills: dict[str, int] = field(default_factory=dict)
    kills_with_jobs_running: int = 0
    sweeps: int = 0
    finished_jobs_touched: int = 0
    orphans: int = 0
    jobs_that_differ: int = 0
    jobs_not_done: int = 0


def campaign(num_kills: int, *, forks: Forks, folder: Path, seed: int) -> Tally:
    """Kill launchers, started by `forks`, `num_kills` times under `folder`."""
    rng = random.Random(seed)
    tally = Tally()
    _launch(forks, folder / "undisturbed").wait()
    truth = _metrics(folder / "undisturbed")
    assert len(truth) == NUM_JOBS
    while sum(tally.kills.values()) < num_kills:
        tally.sweeps += 1
        sweep = folder / f"sweep{tally.sweeps}"
        finished: dict[Path, str] = {}
        while len(finished) < NUM_JOBS and sum(tally.kills.values()) < num_kills:
            _kill_one(forks, sweep, rng, tally)
            _check_finished(sweep, finished, tally)
        code = _launch(forks, sweep).wait()
        _check_finished(sweep, finished, tally)
        tally.jobs_not_done += NUM_JOBS - len(finished) if code == 0 else NUM_JOBS
        found = _metrics(sweep)
        tally.jobs_that_differ += sum(found.get(job) != lines for job, lines in truth.items())
        print(json.dumps(asdict(tally)), flush=True)
    return tally


def _launch(forks: Forks, sweep: Path) -> Run:
    return forks.start("-m", *JOBS, f"hydra.sweep.dir={sweep.name}", cwd=sweep.parent)


def _kill_one(forks: Forks, sweep: Path, rng: random.Random, tally: Tally) -> None:
    """Launch, wait for a random while after the first job has begun (or not so long), kill."""
    process = _launch(forks, sweep)
    if rng.random() < 0.8:
        before = _activity(sweep)
        deadline = time.monotonic() + _PATIENCE_S
        while _activity(sweep) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
    else:
        time.sleep(rng.uniform(0, 8))
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    number = rng.choice(SIGNALS)
    tally.kills[number.name] = tally.kills.get(number.name, 0) + 1
    tally.kills_with_jobs_running += len(children) > 1
    process.send_signal(number)
    process.wait(timeout=_PATIENCE_S)
    _, alive = psutil.wait_procs(children, timeout=5)
    tally.orphans += len(alive)


def _activity(sweep: Path) -> int:
    return sum(file.stat().st_size for file in sweep.glob("jobs/*/output.txt"))


def _check_finished(sweep: Path, finished: dict[Path, str], tally: Tally) -> None:
    """Jobs that are done: as they were when they were first seen done."""
    for mark in sweep.glob("jobs/*/DONE"):
        now = _fingerprint(mark.parent)
        tally.finished_jobs_touched += finished.setdefault(mark.parent, now) != now


def _fingerprint(job: Path) -> str:
    files = sorted(file for file in job.rglob("*") if file.is_file())
    stamps = [(str(f.relative_to(job)), f.stat().st_mtime_ns, f.read_bytes()) for f in files]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


def _metrics(sweep: Path) -> dict[str, list[dict[str, object]]]:
    return {
        mark.parent.name: [comparable(line) for line in read_metrics(mark.parent)]
        for mark in sweep.glob("jobs/*/DONE")
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        forks = Forks(Path(folder))
        result = campaign(int(sys.argv[1]), forks=forks, folder=Path(folder), seed=0)
        forks.close()
    print(json.dumps(asdict(result), indent=2))
