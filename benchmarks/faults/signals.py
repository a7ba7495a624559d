"""F5: signals at random instants of a run, while a reward hangs in each of its parts, and twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from warm_cli import Run

from benchmarks.faults.row import Row
from benchmarks.faults.runs import STEPS, differences, family, finish, prepare, start, status
from rlkit.tracking.files import read_lines

_LIMIT_S = 30.0
_STRIDE = 7

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


class Outcome(NamedTuple):
    """This is what came of one signal."""

    name: str
    seconds: float
    """From the signal to the end of the process."""
    wrong: str
    """Empty when nothing was."""


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
_NO_FOLDER = "FileNotFoundError"
_ENDS = {True: [(130, "interrupted")], False: [(130, _NO_FOLDER)]}
"""Exit code and status of a run that had begun, and of one that had no folder yet."""
_RANDOM_ENDS = [
    *_ENDS[True],
    *_ENDS[False],
    *((-number, _NO_FOLDER) for number in _SIGNALS),  # nobody listens yet: Python imports
    (0, "completed"),  # the run was about to end by itself
]


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
    """Send `count` signals, then bring the run to its end.

    The first third of them arrive while a reward hangs, the others at random instants: while the
    run loads, samples, scores, updates, evaluates or saves. Survived is a run that ends within 30 s
    with exit code 130, without a traceback or a process that lives on, with `interrupted` in its
    folder, and that then goes on bitwise, with every evaluation.
    """
    base = prepare(folder)
    (folder / "waiting_reward.py").write_text(_REWARD)
    base = [*base[:-1], "+reward.functions.digits.fn=waiting_reward.py:digits"]
    base += ["reward.timeout_s=200", "evaluation.num_prompts=2"]
    _environment(folder, "truth", call=0)
    if problem := finish(folder, "truth", base):
        raise RuntimeError(problem)
    tried = (folder / "place_truth/calls").stat().st_size - _CALLS_OF_A_RUN
    outcomes = _while_hanging(folder, base, max(1, count // 3), tried=tried)
    hanging = len(outcomes)
    outcomes += _at_random(folder, base, count - hanging)
    slowest = max(outcome.seconds for outcome in outcomes)
    wrong = [f"{o.name}: {o.wrong}" for o in outcomes if o.wrong]
    said = (
        "; ".join(wrong[:3]) or "no evaluation lost, no traceback, exit 130, bitwise after resume"
    )
    note = (
        f"{hanging} while a reward hangs, {len(outcomes) - hanging} at random instants; slowest "
        f"end {slowest:.1f} s (goal 30); {said}"
    )
    return Row("F5 signals", len(outcomes), len(outcomes) - len(wrong), len(wrong), note)


def _while_hanging(folder: Path, base: list[str], count: int, *, tried: int) -> list[Outcome]:
    every = cases()
    outcomes = []
    for number in range(count):
        # The stride and the number of cases share no factor: none comes twice before all have come.
        case = every[(number * _STRIDE) % len(every)]
        seconds, wrong = _interrupt(folder, f"run_{number}", base, case, tried=tried)
        outcomes.append(Outcome(case.name, seconds, wrong))
    return outcomes


def _at_random(folder: Path, base: list[str], count: int) -> list[Outcome]:
    """Send signals at instants that are spread evenly over the time that a whole run takes."""
    draw = random.Random(5)
    _environment(folder, "timed", call=0)
    begun = time.monotonic()
    if count and (problem := finish(folder, "timed", base)):
        raise RuntimeError(problem)
    whole = time.monotonic() - begun
    outcomes = list[Outcome]()
    while len(outcomes) < count:
        name, number = f"random_{len(outcomes)}", _SIGNALS[len(outcomes) % len(_SIGNALS)]
        instant = whole * draw.random()
        _environment(folder, name, call=0)
        process = start(folder, name, base)
        time.sleep(instant)
        if process.poll() is not None:  # it was faster than the timed one: another instant
            shutil.rmtree(folder / name)
            continue
        seconds, wrong = _end(folder, name, base, process, (number,), ends=_RANDOM_ENDS)
        outcomes.append(Outcome(f"{number.name} after {instant:.2f} s", seconds, wrong))
    return outcomes


def _environment(folder: Path, name: str, *, call: int) -> None:
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
    return _end(folder, name, base, process, case.numbers, ends=_ENDS[bool(case.call)])


def _end(
    folder: Path,
    name: str,
    base: list[str],
    process: Run,
    numbers: Sequence[signal.Signals],
    *,
    ends: Collection[tuple[int, str]],
) -> tuple[float, str]:
    """Send the signals; return the seconds until the end, and what went wrong.

    `ends` are the pairs of exit code and status of which the run must show one.
    """
    children = family(process)
    begun = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    done = process.finish(200)
    seconds = time.monotonic() - begun
    _, alive = psutil.wait_procs(children, timeout=5)
    if seconds > _LIMIT_S:
        return seconds, f"took {seconds:.0f} s"
    end = (done.returncode, status(folder / name))
    if end not in ends or "Traceback" in done.stdout + done.stderr:
        return seconds, f"exit {end[0]}, status {end[1]}: {done.stderr[-200:]}"
    if alive or (end[1] == _NO_FOLDER and (folder / name).exists()):
        return seconds, f"{len(alive)} processes live, status {end[1]}"
    if problem := finish(folder, name, base):
        return seconds, problem
    labels = {str(line["label"]) for line in read_lines(folder / name / "evals.jsonl")}
    truth = {str(line["label"]) for line in read_lines(folder / "truth/evals.jsonl")}
    if labels != truth:
        return seconds, f"evaluations lost: {json.dumps(sorted(truth - labels))}"
    wrong = differences(folder / name, folder / "truth")
    return seconds, wrong[0] if wrong else ""
