"""Derived files that are cut, damaged or gone block no resume, and their holes are said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.faults.row import Row
from benchmarks.faults.runs import differences, finish, prepare, start

_FILES = ("metrics.jsonl", "evals.jsonl", "run.json", "status.json", "config.yaml", "log.txt")
_KINDS = ("cut", "noise", "delete")


def run(count: int, folder: Path) -> Row:
    """Damage a derived file of a half-done run in `count` ways, and go on with it.

    Survived is a run that ends with the weights of the undisturbed one and every later line of its
    record, and that says what its record lacks.
    """
    base = prepare(folder)
    for name, steps in (("truth", []), ("half", ["steps=4"])):
        if problem := finish(folder, name, [*base, *steps]):
            raise RuntimeError(problem)
    cases = [(file, kind) for kind in _KINDS for file in _FILES]
    survived, notes = 0, list[str]()
    chosen = [cases[i % len(cases)] for i in range(count)]
    for number, (file, kind) in enumerate(chosen):
        run = folder / f"run_{number}"
        shutil.copytree(folder / "half", run)
        _damage(run / file, kind)
        done = start(folder, run.name, base).finish(120)
        wrong = _judge(run, folder / "truth", file, done.returncode, done.stdout + done.stderr)
        survived += not wrong
        notes += [f"{file} {kind}: {wrong}"] if wrong else []
    said = "; ".join(notes[:3]) or "same weights, and a line about each hole"
    note = f"{', '.join(_FILES)}: cut, overwritten with noise, deleted; {said}"
    return Row("Derived files damaged", count, survived, count - survived, note)


def _damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    if kind == "delete":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[: middle - 20] + bytes(range(100, 140)) + content[middle + 20 :])


def _judge(run: Path, truth: Path, file: str, code: int, said: str) -> str:
    if code != 0:
        return f"exit {code}: {said[-200:]!r}"
    wrong = differences(run, truth)
    if any(name not in ("metrics.jsonl", "evals.jsonl") for name in wrong):
        return f"differs in {wrong}"
    if wrong and "the run goes on" not in said:
        return f"{wrong[0]} has a hole, and nothing says so"
    later = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    return "" if later[-2:] == [4, 5] else f"steps {later} are on record"
