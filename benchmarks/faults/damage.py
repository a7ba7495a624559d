"""F3: each file of a checkpoint is cut, flipped or deleted; each bit of `state.json` is flipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from benchmarks.faults.row import Row
from benchmarks.faults.runs import differences, finish, prepare
from rlkit.training import checkpoint

_CPU = torch.device("cpu")
_FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
_PLACES = (0.1, 0.5, 0.9)


def run(count: int, folder: Path) -> Row:
    """Damage the newest checkpoint of a real run, and go on from the one before it.

    `count` bits of `state.json` are flipped, evenly spread; all of them if there are fewer. The
    three kinds of damage at three places of each file are tried by loading, and one of each kind
    by a whole resumed run.
    """
    base = prepare(folder)
    for name in ("truth", "half"):
        steps = [] if name == "truth" else ["steps=4"]
        if problem := finish(folder, name, [*base, *steps]):
            raise RuntimeError(problem)
    injected, survived = 0, 0
    for name in _FILES:
        for kind in ("cut", "flip", "delete"):
            for place in _PLACES:
                copy = _copy(folder)
                _damage(copy / "step-000004" / name, kind, place)
                injected += 1
                survived += _falls_back(copy, name)
    resumed = 0
    for name, kind in zip(_FILES, ("cut", "flip", "delete"), strict=True):
        run = folder / f"resumed_{kind}"
        shutil.copytree(folder / "half", run)
        _damage(run / "checkpoints/step-000004" / name, kind, 0.5)
        problem = finish(folder, run.name, base)
        injected += 1
        resumed += not problem and not differences(run, folder / "truth")
    bits, silent = _flip_bits(folder, count)
    injected += bits
    survived += resumed + bits - silent
    note = (
        f"27 by loading, 3 by a resumed run ({resumed} bitwise), {bits} bits of state.json one by "
        f"one ({silent} silent); each is named and the checkpoint before it is used"
    )
    return Row("F3 damaged checkpoint file", injected, survived, injected - survived, note)


def _copy(folder: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "half/checkpoints", copy)
    return copy


def _damage(file: Path, kind: str, place: float) -> None:
    content = bytearray(file.read_bytes())
    position = int(len(content) * place)
    if kind == "delete":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[:position])
    else:
        content[position] ^= 0x41
        file.write_bytes(content)


def _falls_back(checkpoints: Path, name: str) -> bool:
    """Tell if the damaged file is named and the checkpoint before it is loaded."""
    loaded, problems = checkpoint.load_newest(checkpoints, device=_CPU)
    named = len(problems) == 1 and f"step-000004/{name}" in problems[0]
    return named and loaded is not None and loaded.progress.step == 2


def _flip_bits(folder: Path, count: int) -> tuple[int, int]:
    """Flip bits of `state.json`; return how many, and how many changed what it says unnoticed."""
    copy = _copy(folder)
    file = copy / "step-000004/state.json"
    whole = file.read_bytes()
    truth = checkpoint.verify(file.parent)
    bits = len(whole) * 8
    chosen = range(bits) if count >= bits else sorted({i * bits // count for i in range(count)})
    silent = 0
    for bit in chosen:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            silent += checkpoint.verify(file.parent) != truth
        except checkpoint.CheckpointError:
            continue
    return len(chosen), silent
