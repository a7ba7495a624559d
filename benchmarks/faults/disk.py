"""F4: the disk is full, read-only or out of files in mid-run; then there is space again."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.faults.row import Row
from benchmarks.faults.runs import STEPS, differences, finish, prepare, start, wait_for

_FULL = os.strerror(errno.ENOSPC)
_READ_ONLY = os.strerror(errno.EROFS)
_DENIED = os.strerror(errno.EPERM)


# Files that a run has open keep a whole file system from becoming read-only: its folder of
# checkpoints becomes a mount of its own.
_CHANGES: Mapping[str, Callable[[Path], list[list[str]]]] = {
    "read-only": lambda saved: [
        ["mount", "--bind", str(saved)],
        ["mount", "-o", "remount,bind,ro"],
    ],
    "immutable": lambda saved: [["chattr", "+i"]],
}
_UNDONE = {"read-only": ["umount", "-l"], "immutable": ["chattr", "-i"]}


def run(count: int, folder: Path) -> Row:
    """Take the space away at `count` moments of runs on a small file system in memory.

    Where nothing can be mounted, what the system lets us do is tried: read-only folders. Survived
    is a run that ended with a line that names a path, without a traceback, and that goes on bitwise
    once it can write.
    """
    base = prepare(folder)
    if problem := finish(folder, "truth", base):
        raise RuntimeError(problem)
    size = sum(p.stat().st_size for p in (folder / "truth").rglob("*") if p.is_file())
    tried, survived, notes = Counter[str](), 0, list[str]()
    for number in range(count):
        kind = ("full", "inodes", "read-only", "immutable")[number % 4]
        share = 0.15 + 0.7 * (number // 4) / max(1, (count - 1) // 4)
        problem = _try(folder, base, kind, share=share, size=size, number=number)
        if problem == "not here":
            continue
        tried[kind] += 1
        survived += not problem
        notes += [f"{kind}: {problem}"] if problem else []
    said = "; ".join(notes[:2]) or "each ended with one line that names a path and went on bitwise"
    injected = tried.total()
    note = f"{', '.join(f'{kind} {number}' for kind, number in tried.items())}; {said}"
    return Row(
        "F4 disk full or read-only in mid-run", injected, survived, injected - survived, note
    )


def _try(folder: Path, base: list[str], kind: str, *, share: float, size: int, number: int) -> str:
    """Return what went wrong; empty when nothing did, `not here` when it cannot be tried."""
    place = folder / f"disk_{number}"
    place.mkdir()
    limits = {"full": f"size={max(96, int(size * share) // 1024)}k", "inodes": "nr_inodes=40"}
    with _mounted(place, limits.get(kind, "size=64m")) as mounted:
        if not mounted:
            return "not here"
        run = place / "run"
        process = start(folder, f"{place.name}/run", base)
        saved = run / "checkpoints"
        if kind in _CHANGES:
            step = 2 * max(1, round(share * STEPS / 2))
            wait_for(saved / f"step-{step:06d}", process)
            if not all(_done(*words, str(saved)) for words in _CHANGES[kind](saved)):
                process.send_signal(9)
                process.wait(60)
                return "not here"
        done = process.finish(120)
        if kind in _CHANGES:
            _done(*_UNDONE[kind], str(saved))
        else:
            _done("mount", "-o", "remount,size=64m,nr_inodes=100000", str(place))
        return _judge(folder, base, run, done)


def _done(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _judge(folder: Path, base: list[str], run: Path, done: subprocess.CompletedProcess[str]) -> str:
    said = done.stdout + done.stderr
    if "Traceback" in said:
        return "a traceback"
    if done.returncode not in (0, 1, 2):
        return f"exit {done.returncode}"
    if done.returncode and not any(text in said for text in (_FULL, _READ_ONLY, _DENIED)):
        return f"does not say why: {said[-200:]!r}"
    if done.returncode and run.parent.name not in said:
        return f"names no path: {said[-200:]!r}"
    name = str(run.relative_to(folder))
    if problem := finish(folder, name, base):
        return f"does not go on: {problem}"
    wrong = differences(run, folder / "truth")
    # Completions are worth less than the run: those that found no space are missing, and said.
    lost = [name for name in wrong if not name.startswith("completions")]
    return f"differs in {lost[0]}" if lost else ""


@contextlib.contextmanager
def _mounted(place: Path, options: str) -> Iterator[bool]:
    """Mount a file system in memory at `place`; yields whether that was possible."""
    command = ["mount", "-t", "tmpfs", "-o", options, "rlkit-faults", str(place)]
    done = subprocess.run(command, capture_output=True, check=False) if os.geteuid() == 0 else None
    mounted = done is not None and done.returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
        shutil.rmtree(place, ignore_errors=True)
