"""F2: a process is killed at every system call of a save; what is complete must stay loadable."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from benchmarks.faults.row import Row
from benchmarks.faults.traced import killed_at
from rlkit.runtime.files import remove_litter
from rlkit.tracking.files import JsonLines, read_lines, write_atomic
from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint, RunProgress

_CPU = torch.device("cpu")


def run(count: int, folder: Path) -> Row:
    """Kill three kinds of writing at each of their system calls, or at `count` of them each.

    Survived is a kill after which the newest complete checkpoint loads bitwise and is the old one
    or the new one; after which a file has its old or its new content; and after which the lines of
    a log before the last are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a fork has no other threads to wait for
    totals: dict[str, int] = {}
    injected = survived = 0
    for name, case in (("checkpoint", _Save), ("file", _File), ("line", _Line)):
        scene = case(folder / name)
        scene.prepare()
        stops, _ = killed_at(scene.work, boundary=None)
        totals[name] = stops
        for boundary in _some(stops, count):
            scene.prepare()
            _, killed = killed_at(scene.work, boundary=boundary)
            injected += killed
            survived += killed and scene.is_whole()
    said = ", ".join(f"{name} {stops}" for name, stops in totals.items())
    note = f"entries and exits of system calls: {said}; 0 damaged checkpoints loaded"
    return Row("F2 SIGKILL at a system call", injected, survived, injected - survived, note)


def _some(stops: int, count: int) -> list[int]:
    """Return `count` of the boundaries, evenly; all of them if `count` is larger."""
    if count >= stops:
        return list(range(stops))
    return sorted({i * (stops - 1) // max(1, count - 1) for i in range(count)})


class _Save:
    """Two checkpoints are there, of which the save of a third deletes the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old = [_example(step) for step in (1, 2)]
        self._new = _example(3)

    def prepare(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for old in self._old:
            checkpoint.save(self._folder / "checkpoints", old, keep_last=2)

    def work(self) -> None:
        checkpoint.save(self._folder / "checkpoints", self._new, keep_last=2)

    def is_whole(self) -> bool:
        loaded, problems = checkpoint.load_newest(self._folder / "checkpoints", device=_CPU)
        wanted = {2: self._old[1], 3: self._new}
        if loaded is None or problems or loaded.progress.step not in wanted:
            return False
        same = wanted[loaded.progress.step]
        equal = all(
            torch.equal(loaded.parameters[k], same.parameters[k])
            and torch.equal(loaded.moments[k], same.moments[k])
            for k in same.parameters
        )
        remove_litter(self._folder, subfolders=("checkpoints",))
        names = {path.name for path in (self._folder / "checkpoints").iterdir()}
        return equal and all(name.startswith("step-") for name in names)


class _File:
    """A file is replaced as `status.json` is."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "status.json"

    def prepare(self) -> None:
        shutil.rmtree(self._file.parent, ignore_errors=True)
        self._file.parent.mkdir(parents=True)
        self._file.write_bytes(b"old" * 1000)

    def work(self) -> None:
        write_atomic(self._file, b"new" * 1000)

    def is_whole(self) -> bool:
        return self._file.read_bytes() in (b"old" * 1000, b"new" * 1000)


class _Line:
    """A line is appended as to `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"

    def prepare(self) -> None:
        shutil.rmtree(self._file.parent, ignore_errors=True)
        self._file.parent.mkdir(parents=True)
        self._file.write_text('{"step": 0}\n')

    def work(self) -> None:
        lines = JsonLines(self._file, kept=[{"step": 0}])
        lines.append({"step": 1})
        lines.close()

    def is_whole(self) -> bool:
        return read_lines(self._file) in ([{"step": 0}], [{"step": 0}, {"step": 1}])


def _example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(64, 32, generator=generator) for name in ("a", "b")}
    progress = RunProgress(step=step, updates=step, skipped_in_row=0, config_hash="faults")
    return Checkpoint(parameters=tensors, moments=tensors, progress=progress)
