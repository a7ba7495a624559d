"""Runs with vLLM that are interrupted and go on: the same bits, or the place where they part."""

from __future__ import annotations

import math
import signal
from pathlib import Path

from benchmarks.faults.engine_runs import start
from benchmarks.faults.marked import Run
from benchmarks.faults.row import Row
from rlkit.training.first_difference import RunComparison, first_difference

STEPS = 12
_INTERRUPTED = {
    "killed in step 5": (signal.SIGKILL, 5),
    "ended by SIGTERM in step 7": (signal.SIGTERM, 7),
    "killed in step 9": (signal.SIGKILL, 9),
}
_SAID = ("came out as before the interruption", "came out otherwise than before")


def resumed(folder: Path, model: str, *, generator: str = "vllm") -> Row:
    """Interrupt runs and bring them to their end; compare with two runs that nothing disturbed.

    Survived is a run that ends with all its steps, equal bit for bit to the undisturbed one. Where
    the two undisturbed runs differ, the engine is not deterministic. Then a run has survived as
    well when the step in which it parts is named.
    """
    more = (f"steps={STEPS}", "evaluation.every=4", "checkpoint.every=2", "checkpoint.keep_every=1")
    whole = {
        name: start(folder, name, model, *more, generator=generator) for name in ("one", "two")
    }
    parts = {
        f"parts_{n}": start(folder, f"parts_{n}", model, *more, generator=generator)
        for n in range(len(_INTERRUPTED))
    }
    for run, (number, step) in zip(parts.values(), _INTERRUPTED.values(), strict=True):
        run.until_step(step, math.inf)
        run.process.send_signal(number)
    for run in parts.values():
        run.process.wait(120)
    again = {
        name: start(folder, name, model, *more, "resume=must", generator=generator)
        for name in parts
    }
    for run in (*whole.values(), *again.values()):
        run.process.wait(280)
    truth = first_difference(folder / "one", folder / "two")
    survived, notes = 0, [f"two undisturbed runs: {_words(truth)}"]
    for run, what in zip(again.values(), _INTERRUPTED, strict=True):
        found = first_difference(run.folder, folder / "one")
        code, steps = run.process.returncode, run.steps()
        done = code == 0 and steps == STEPS
        same = found.step is None and found.steps == STEPS
        survived += done and (same or truth.step is not None)
        notes.append(f"{what}: {_words(found)}{_said_by(run)}")
        notes += [] if done else [f"exit {code}, {steps} steps: {run.said()}"]
    injected = len(_INTERRUPTED)
    return Row(
        "Resume with vLLM, one card", injected, survived, injected - survived, "; ".join(notes)
    )


def _words(found: RunComparison) -> str:
    if found.step is None:
        return f"{found.steps} steps equal bit for bit"
    return f"{found.steps} steps equal, then step {found.step}: {found.what}"


def _said_by(run: Run) -> str:
    """Return what the run itself said of the steps that it made twice."""
    lines = run.output().splitlines()
    found = [line.strip() for line in lines if any(words in line for words in _SAID)]
    return f" (it said: {found[-1][:160]})" if found else ""
