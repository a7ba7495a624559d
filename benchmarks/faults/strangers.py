"""F15: models, adapters, checkpoints and GGUF files of a stranger run no code and start no end."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.hostile_files import ADAPTERS, CHECKPOINTS, EXECUTED, GGUFS, MODELS
from benchmarks.faults.one_line import badly_ended
from benchmarks.faults.row import Row
from benchmarks.faults.runs import finish, forks, prepare

_LIMIT_S = 60.0
# These are found damaged and left aside, or mean what they say; the run may go on.
_MAY_WORK = {
    *("checkpoint: " + name for name in CHECKPOINTS),
    *("model: weights of NaN", "model: an end token of 10^9", "model: heads that do not divide"),
    *("model: a generation config that is no JSON"),
    *("adapter: tensors of NaN", "adapter: a pattern that hangs"),
}


class _Case(NamedTuple):
    name: str
    words: list[str]


def run(count: int, folder: Path) -> Row:
    """Start `count` runs, each with one file of a stranger.

    Survived is a run in which no code of the stranger's ran, that ended within a minute, without a
    traceback, in one line, or by training on with what is sound.
    """
    base = prepare(folder)
    for name, words in (("good", ["steps=4"]), ("adapted", ["steps=2"])):
        if problem := finish(folder, name, [*base, *words]):
            raise RuntimeError(problem)
    survived, refused, slowest, notes = 0, 0, 0.0, list[str]()
    cases = list(_cases(folder, base))[:count]
    for case in cases:
        begun = time.monotonic()
        try:
            done = forks().start(*case.words, cwd=folder).finish(_LIMIT_S)
            wrong = badly_ended(done, may_work=case.name in _MAY_WORK)
            if done.returncode == 1 and case.name in _MAY_WORK and "Traceback" not in done.stderr:
                wrong = ""  # it ended by itself: NaN teaches nothing
            refused += done.returncode != 0
        except subprocess.TimeoutExpired:
            wrong = "no end"
        seconds = time.monotonic() - begun
        slowest = max(slowest, seconds)
        if (folder / EXECUTED).exists():
            (folder / EXECUTED).unlink()
            wrong = "code was executed"
        survived += not wrong
        notes += [f"{case.name}: {wrong}"] if wrong else []
    said = "; ".join(notes[:5]) or "nothing executed, no traceback"
    kinds = f"{len(MODELS)} models, {len(ADAPTERS)} adapters, {len(CHECKPOINTS)} checkpoints"
    note = (
        f"{kinds}, {len(GGUFS)} GGUF files; {refused} ended in one line, slowest {slowest:.1f} s; "
        f"{said}"
    )
    name = "F15 files of a stranger"
    return Row(name, len(cases), survived, len(cases) - survived, note)


def _cases(folder: Path, base: list[str]) -> Iterator[_Case]:
    plain = [o for o in base if not o.startswith(("model.source=", "steps="))] + ["steps=2"]
    for number, (name, change) in enumerate(MODELS.items()):
        copy = folder / f"model_{number}"
        shutil.copytree(folder / "model", copy)
        change(copy)
        words = [f"run_dir=run_m{number}", *plain, f"model.source={copy.name}"]
        if "template" in name:  # a task of messages, which the template renders
            words = [*(o for o in words if not o.startswith("task=")), "task=echo"]
            words.append("task.max_prompt_length=300")
        yield _Case(f"model: {name}", words)
    plain.append("model.source=model")
    for number, (name, change) in enumerate(ADAPTERS.items()):
        copy = folder / f"adapter_{number}"
        shutil.copytree(folder / "adapted/adapter", copy)
        change(copy)
        yield _Case(
            f"adapter: {name}", [f"run_dir=run_a{number}", *plain, f"model.adapter={copy.name}"]
        )
    for number, (name, change) in enumerate(CHECKPOINTS.items()):
        copy = folder / f"run_c{number}"
        shutil.copytree(folder / "good", copy)
        change(copy)
        yield _Case(f"checkpoint: {name}", [f"run_dir={copy.name}", "resume=auto", *base])
    for number, (name, content) in enumerate(GGUFS.items()):
        file = folder / f"file_{number}.gguf"
        file.write_bytes(content)
        words = [f"run_dir=run_g{number}", *plain, f"model.source={file.name}"]
        yield _Case(f"gguf: {name}", [*words, "model.cache_dir=cache"])
