"""F5: signals in every phase of a run, in an evaluation, in a reward that hangs, and twice."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.faults.row import Row
from benchmarks.faults.runs import STEPS, differences, finish, prepare, start, status
from rlkit.tracking.files import read_lines

_LIMIT_S = 30.0

# The reward counts its calls in a file and waits in the one that is asked for, once.
_REWARD = '''
import os
import time


def digits(group):
    """Return the share of letters before `n`, after a wait in one call."""
    calls = os.path.join(os.environ["FAULTS_PLACE"], "calls")
    with open(calls, "a") as file:
        file.write("x")
    if os.path.getsize(calls) == int(os.environ["FAULTS_CALL"]):
        open(calls + ".waiting", "w").close()
        time.sleep(float(os.environ["FAULTS_SECONDS"]))
    return [sum(c.isdigit() or "a" <= c < "n" for c in x.text) / 8 for x in group]
'''


class Case(NamedTuple):
    """One signal, or several, at one place of a run."""

    name: str
    call: int
    """The call of the reward in which it arrives."""
    numbers: tuple[signal.Signals, ...]


# The reward is called for two groups in each evaluation and in each step, after the calls that try
# it before the run begins: 1 and 2 are of the evaluation before, 3 to 6 of steps 0 and 1, 7 and 8
# of the evaluation after step 2.
_PLACES = {
    **{"the trial before the run": 0, "evaluation before": 1, "step 1": 5},
    **{"evaluation after step 2": 7, "step 3": 11},
}
_CALLS_OF_A_RUN = 2 * (STEPS + 4)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def cases() -> list[Case]:
    """Return every signal at every place, and two SIGINT in a row."""
    found = [
        Case(f"{number.name} in {place}", call, (number,))
        for place, call in _PLACES.items()
        for number in _SIGNALS
    ]
    twice = (signal.SIGINT, signal.SIGINT)
    return found + [Case(f"two SIGINT in {place}", call, twice) for place, call in _PLACES.items()]


def run(count: int, folder: Path) -> Row:
    """Send `count` signals while a reward hangs, then bring the run to its end.

    Survived is a run that ends within 30 s with exit code 130, without a traceback or a process
    that lives on, with `interrupted` in its folder, and that then goes on bitwise, with every
    evaluation.
    """
    base = prepare(folder)
    (folder / "waiting_reward.py").write_text(_REWARD)
    base = [*base[:-1], "+reward.functions.digits.fn=waiting_reward.py:digits"]
    base += ["reward.timeout_s=200", "evaluation.num_prompts=2"]
    _environment(folder, "truth", call=0)
    if problem := finish(folder, "truth", base):
        raise RuntimeError(problem)
    tried = (folder / "place_truth/calls").stat().st_size - _CALLS_OF_A_RUN
    every, slowest = cases(), 0.0
    survived, notes = 0, list[str]()
    # An odd stride goes through all kinds before it repeats one.
    chosen = [every[(i * 5) % len(every)] for i in range(count)]
    for number, case in enumerate(chosen):
        seconds, wrong = _interrupt(folder, f"run_{number}", base, case, tried=tried)
        slowest = max(slowest, seconds)
        survived += not wrong
        notes += [f"{case.name}: {wrong}"] if wrong else []
    said = (
        "; ".join(notes[:3]) or "no evaluation lost, no traceback, exit 130, bitwise after resume"
    )
    note = f"slowest end {slowest:.1f} s (goal 30); {said}"
    return Row("F5 signals while a reward hangs", count, survived, count - survived, note)


def _environment(folder: Path, name: str, *, call: int) -> None:
    import os

    place = folder / f"place_{name}"
    place.mkdir(exist_ok=True)
    values = {"FAULTS_PLACE": str(place), "FAULTS_CALL": str(call), "FAULTS_SECONDS": "190"}
    os.environ.update(values)  # the runs' environment is this one


def _interrupt(
    folder: Path, name: str, base: list[str], case: Case, *, tried: int
) -> tuple[float, str]:
    _environment(folder, name, call=tried + case.call)
    process = start(folder, name, base)
    give_up = time.monotonic() + 120
    while not (folder / f"place_{name}/calls.waiting").exists():
        if process.poll() is not None or time.monotonic() > give_up:
            return 0.0, "the reward was never reached"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    begun = time.monotonic()
    for number in case.numbers:
        process.send_signal(number)
        time.sleep(0.05)
    done = process.finish(200)
    seconds = time.monotonic() - begun
    _, alive = psutil.wait_procs(children, timeout=5)
    if seconds > _LIMIT_S:
        return seconds, f"took {seconds:.0f} s"
    if done.returncode != 130 or "Traceback" in done.stdout + done.stderr:
        return seconds, f"exit {done.returncode}: {done.stderr[-200:]}"
    # Before a run has a folder, nothing may be left of it.
    expected = "interrupted" if case.call else "FileNotFoundError"
    if alive or status(folder / name) != expected or (not case.call and (folder / name).exists()):
        return seconds, f"{len(alive)} processes live, status {status(folder / name)}"
    if problem := finish(folder, name, base):
        return seconds, problem
    labels = {str(line["label"]) for line in read_lines(folder / name / "evals.jsonl")}
    truth = {str(line["label"]) for line in read_lines(folder / "truth/evals.jsonl")}
    if labels != truth:
        return seconds, f"evaluations lost: {json.dumps(sorted(truth - labels))}"
    wrong = differences(folder / name, folder / "truth")
    return seconds, wrong[0] if wrong else ""
