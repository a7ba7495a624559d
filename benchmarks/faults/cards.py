"""The rows that need several cards: drift, starts and stops, deaths, and a sweep on all of them.

    python -m benchmarks.faults.cards --model PATH [--parts drift,cycles,deaths,sweep] --out FILE

`--device cpu` runs the same with processes on the CPU, as a test of this program. The file is
written after each row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.ending import exit_on_sigterm
from benchmarks.faults.marked import Place, Run, end_all
from benchmarks.faults.rank_victim import PHASES
from benchmarks.faults.row import Row
from rlkit.launch.devices import find_gpus
from rlkit.launch.environment import hardware, versions
from rlkit.training import checkpoint

_END_S = 30.0
"""Seconds in which all ranks must have ended after one of them died."""
_LOOKS_EVERY = 25
_HOST = torch.device("cpu")


def drift(place: Place, steps: int) -> Row:
    """Train for `steps` steps on two cards; the guard compares all bits every 25 updates."""
    run = place.start("drift", f"steps={steps}", "evaluation.every=0", "checkpoint.every=50")
    code = run.wait(place.seconds_left())
    looks = run.steps() // _LOOKS_EVERY
    wrong = "" if code == 0 else f"exit {code}: {run.said()}"
    note = f"{run.steps()} updates; {wrong or 'all ranks held the same bits'}"
    return Row("drift of two ranks", looks, 0 if wrong else looks, looks if wrong else 0, note)


def cycles(place: Place, count: int, at_once: int) -> Row:
    """Start and end runs of two ranks: every other one by SIGINT after its first step."""
    tried, survived, notes = 0, 0, list[str]()
    starts, ends, longest = list[float](), list[float](), 0.0
    while tried < count and place.seconds_left() > 1.3 * longest:
        begun = time.monotonic()
        numbers = range(tried, min(tried + at_once, count))
        runs = {n: place.start(f"cycle_{n}", f"steps={3 + 497 * (n % 2)}") for n in numbers}
        with ThreadPoolExecutor(len(runs)) as pool:
            jobs = [
                pool.submit(_cycle, place, run, interrupt=n % 2 == 1) for n, run in runs.items()
            ]
            for end in (job.result() for job in jobs):
                starts.append(end.start_s)
                ends.append(end.end_s)
                survived += end.problem == ""
                notes += [end.problem] if end.problem else []
        tried += len(runs)
        longest = max(longest, time.monotonic() - begun)
    said = "; ".join(notes[:2]) or "no hang, no process left"
    note = (
        f"{at_once} at once, half of them interrupted; median start {median(starts):.1f} s, "
        f"slowest end {max(ends):.1f} s; {said}"
    )
    return Row("starts and stops of two ranks", tried, survived, tried - survived, note)


class _Cycle(NamedTuple):
    """One start and stop: seconds to the first step, seconds to the end, and what went wrong."""

    start_s: float
    end_s: float
    problem: str


def _cycle(place: Place, run: Run, *, interrupt: bool) -> _Cycle:
    begun = time.monotonic()
    run.until_step(1, place.seconds_left())
    started = time.monotonic()
    if interrupt:
        run.process.send_signal(signal.SIGINT)
    else:
        run.until_step(3, place.seconds_left())
    asked = time.monotonic()
    code, left = run.wait(min(60.0, place.seconds_left())), run.left()
    good = code == (130 if interrupt else 0) and not left
    problem = "" if good else f"{run.folder.name}: exit {code}, {left} left, {run.said()}"
    return _Cycle(started - begun, time.monotonic() - asked, problem)


def deaths(place: Place) -> Iterator[Row]:
    """Kill a rank in each phase, all at once in runs of their own; then go on with one card."""
    victims = {phase: "0" if phase == "saving" else "1" for phase in PHASES}
    module = "benchmarks.faults.rank_victim"
    more = ("steps=500", "checkpoint.every=1", "evaluation.every=0")
    runs = {
        phase: place.start(f"killed_{phase}", *more, module=(module, phase, victim))
        for phase, victim in victims.items()
    }
    survived, notes = 0, list[str]()
    with ThreadPoolExecutor(len(runs)) as pool:
        ends = pool.map(lambda run: _seconds_from_the_death(run, place), runs.values())
    for (phase, run), (seconds, code, left) in zip(runs.items(), ends, strict=True):
        saved, damage = checkpoint.load_newest(run.folder / "checkpoints", device=_HOST)
        step = saved.progress.step if saved else None
        good = code == 1 and seconds <= _END_S and not left and step and not damage
        survived += bool(good)
        notes.append(f"{phase} {seconds:.1f} s, exit {code}, step {step} whole, {left} left")
        notes += [] if good else [run.message(), run.said()]
    count = len(runs)
    yield Row("a rank killed in each phase", count, survived, count - survived, "; ".join(notes))
    yield _resumed(place, runs)


def _seconds_from_the_death(run: Run, place: Place) -> tuple[float, int | None, int]:
    """Return seconds from the death of a rank to the launcher's end, its code, and who is left."""
    code = run.wait(place.seconds_left())
    now, file = time.time(), run.folder.with_suffix(".death")
    return now - float(file.read_text()) if file.exists() else math.inf, code, run.left()


def _resumed(place: Place, runs: dict[str, Run]) -> Row:
    again = {}
    for phase, run in runs.items():
        saved, _ = checkpoint.load_newest(run.folder / "checkpoints", device=_HOST)
        steps = (saved.progress.step if saved else 0) + 2
        more = (f"steps={steps}", "resume=must", "evaluation.every=0", "gpus=1")
        again[phase] = place.start(run.folder.name, *more), steps
    notes, survived = list[str](), 0
    for phase, (run, steps) in again.items():
        code = run.wait(place.seconds_left())
        good = code == 0 and run.steps() == steps
        survived += good
        notes += [] if good else [f"{phase}: exit {code}, {run.steps()} of {steps}: {run.said()}"]
    count = len(again)
    note = "; ".join(notes) or "each went on with the next step"
    return Row("resumed on one card", count, survived, count - survived, note)


def sweep(place: Place, jobs: int, at_once: int) -> Row:
    """Run a sweep of small jobs on one card, then on two: the clock of both, launcher included."""
    cards = [card.name for card in find_gpus(os.environ)][:2]
    seconds, wrong = {}, list[str]()
    for count in (1, 2):
        where = [f"hydra.launcher.jobs_per_gpu={at_once}"]
        if place.device == "cpu":
            where = [f"hydra.launcher.jobs={at_once * count}"]
        options = [o for o in place.overrides("-") if not o.startswith("run_dir=")]
        command = [
            *(sys.executable, "-m", "rlkit", "-m", *options, f"seed=range(0,{jobs})", "steps=8"),
            *(f"hydra.sweep.dir=sweep_{count}", "hydra.launcher.board=plain", *where),
        ]
        begun = time.monotonic()
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(cards[:count])} if cards else {}
        run = Run(place.folder, f"sweep_{count}", command, **visible)
        code = run.wait(place.seconds_left())
        seconds[count] = time.monotonic() - begun
        print(f"{jobs} jobs on {count} cards: {seconds[count]:.1f} s, exit {code}", flush=True)
        done = len(list(run.folder.glob("jobs/*/DONE")))
        if code or done < jobs:
            wrong.append(f"{count} cards: exit {code}, {done} of {jobs}: {run.said()}")
    note = (
        f"{seconds[1]:.1f} s on one card, {seconds[2]:.1f} s on two: {seconds[2] / seconds[1]:.3f}"
    )
    lost = len(wrong)
    return Row(
        f"sweep of {jobs} jobs, {at_once} a card", 2, 2 - lost, lost, "; ".join([note, *wrong])
    )


def main() -> int:
    """Run the parts; the exit code is 1 when anything was lost."""
    options = _arguments()
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="rlkit-cards-") as folder,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(end_all)
        place = Place(
            folder=Path(folder),
            model=str(Path(options.model).resolve()),
            device=options.device,
            generator=options.generator,
            deadline=time.monotonic() + options.deadline_s,
        )
        for part in options.parts.split(","):
            for row in _rows(part, place, options):
                rows.append(row)
                print(f"{row.name}: {row.survived} of {row.injected}; {row.note}", flush=True)
                if options.out:
                    _write(options.out, rows)
    return 1 if any(row.lost for row in rows) else 0


def _rows(part: str, place: Place, options: argparse.Namespace) -> Iterator[Row]:
    if part == "drift":
        yield drift(place, options.steps)
    elif part == "cycles":
        yield cycles(place, options.cycles, options.at_once)
    elif part == "deaths":
        yield from deaths(place)
    else:
        yield sweep(place, options.jobs, options.jobs_per_card)


def _write(file: Path, rows: Sequence[Row]) -> None:
    command = shlex.join(["python", "-m", "benchmarks.faults.cards", *sys.argv[1:]])
    report = {
        "command": re.sub(r"/tmp/\S*/", "", command),
        "versions": versions(),
        "hardware": hardware(),
        "rows": [asdict(row) for row in rows],
    }
    file.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.cards", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--parts", default="drift,cycles,deaths,sweep")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--generator", default="hf")
    parser.add_argument("--steps", type=int, default=100, help="of the drift guard's run")
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=5, help="cycles that run at the same time")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--jobs-per-card", type=int, default=8)
    parser.add_argument("--deadline-s", type=float, default=290.0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
