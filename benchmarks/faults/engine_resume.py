"""Runs with vLLM that are interrupted and go on: the same bits, or the place where they part."""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.faults.engine_runs import log_of, start, steps_of, wait_for_step
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
    for (name, process), (number, step) in zip(parts.items(), _INTERRUPTED.values(), strict=True):
        wait_for_step(folder, name, process, step)
        process.send_signal(number)
    for process in parts.values():
        process.wait(120)
    again = {
        name: start(folder, name, model, *more, "resume=must", generator=generator)
        for name in parts
    }
    codes = {name: process.wait(280) for name, process in {**whole, **again}.items()}
    truth = first_difference(folder / "one", folder / "two")
    survived, notes = 0, [f"two undisturbed runs: {_words(truth)}"]
    for name, what in zip(parts, _INTERRUPTED, strict=True):
        found = first_difference(folder / name, folder / "one")
        done = codes[name] == 0 and steps_of(folder, name) == STEPS
        same = found.step is None and found.steps == STEPS
        survived += done and (same or truth.step is not None)
        notes.append(f"{what}: {_words(found)}{_said_by(folder, name)}")
        if not done:
            end = log_of(folder, name).read_text(errors="replace")[-300:]
            notes.append(f"exit {codes[name]}, {steps_of(folder, name)} steps: {end}")
    injected = len(_INTERRUPTED)
    return Row(
        "Resume with vLLM, one card", injected, survived, injected - survived, "; ".join(notes)
    )


def _words(found: RunComparison) -> str:
    if found.step is None:
        return f"{found.steps} steps equal bit for bit"
    return f"{found.steps} steps equal, then step {found.step}: {found.what}"


def _said_by(folder: Path, name: str) -> str:
    """Return what the run itself said of the steps that it made twice."""
    lines = log_of(folder, name).read_text(errors="replace").splitlines()
    found = [line.strip() for line in lines if any(words in line for words in _SAID)]
    return f" (it said: {found[-1][:160]})" if found else ""
