"""A checkpoint is a folder of safetensors and JSON that appears whole or not at all. No pickle.

    checkpoints/step-000004/{adapter.safetensors, optimizer.safetensors, state.json}

`adapter.safetensors` holds what trains: an adapter, or the float32 masters of all weights, with a
critic if there is one. `state.json` is written last and holds the SHA-256 of the other files and of
what it says itself. Its step must be that of its folder. Nothing random is stored: every seed is a
pure function of (run seed, step, prompt, sample), so a resumed run repeats itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkit.runtime.files import published, scratch_of
from rlkit.schema import content_hash
from rlkit.tracking.files import naming
from rlkit.training.optim import restore_state
from rlkit.training.state_file import (
    STATE_FILE,
    STEP_FOLDER,
    TENSOR_FILES,
    CheckpointError,
    RunProgress,
    read_state,
    seal,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "RunProgress",
    "check_hash",
    "discard",
    "find_newest",
    "is_complete",
    "load",
    "load_newest",
    "read_tensors",
    "restore_moments",
    "save",
    "step_folder",
    "verify",
    "write_tensors",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on: parameters, optimiser moments by parameter name, progress."""

    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`{parameter}/{exp_avg, exp_avg_sq, step}`, or what else the optimiser keeps."""
    progress: RunProgress


def save(folder: Path, checkpoint: Checkpoint, *, keep_last: int, keep_every: int = 0) -> Path:
    """Write a checkpoint, then delete those that are to stay no longer.

    Args:
        folder: The folder of all checkpoints of a run.
        checkpoint: What to write.
        keep_last: Newest checkpoints that stay, >= 1.
        keep_every: Checkpoints whose step is a multiple of it stay as well, >= 0; 0 = none.

    Returns:
        The new checkpoint's folder.

    Raises:
        TrackingError: It cannot be written; the message names it, and the others are intact.
    """
    target = step_folder(folder, checkpoint.progress.step)
    with naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        with published(target) as scratch:
            scratch.mkdir()
            tensors = (checkpoint.parameters, checkpoint.moments)
            for name, part in zip(TENSOR_FILES, tensors, strict=True):
                write_tensors(scratch / name, part)
            hashes = {name: content_hash(scratch / name) for name in TENSOR_FILES}
            state = seal({"progress": asdict(checkpoint.progress), "sha256": hashes})
            (scratch / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
    complete = [(step, path) for step, path in _saved(folder) if is_complete(path)]
    for step, old in sorted(complete)[:-keep_last]:
        if not keep_every or step % keep_every:
            discard(old)
    return target


def load_newest(folder: Path, *, device: torch.device) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, or None, and a line for each damaged one."""
    problems: list[str] = []
    for _, path in sorted(_saved(folder), reverse=True):
        try:
            return load(path, device=device), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the folder of the checkpoint that `load_newest` would load, and a line as it does.

    The tensors are hashed, not loaded.
    """
    problems: list[str] = []
    for _, path in sorted(_saved(folder), reverse=True):
        try:
            verify(path)
            return path, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def verify(path: Path) -> RunProgress:
    """Return the progress of the checkpoint at `path` when every file is as it was written.

    Raises CheckpointError, which names the file that is not.
    """
    progress, hashes = read_state(path)
    for name in TENSOR_FILES:
        check_hash(path / name, expected=hashes[name], index=path / STATE_FILE)
    return progress


def load(path: Path, *, device: torch.device) -> Checkpoint:
    """Return the checkpoint at `path`, verified; a CheckpointError names the file that is wrong."""
    progress, hashes = read_state(path)
    parameters, moments = (
        read_tensors(path / name, expected=hashes[name], index=path / STATE_FILE, device=device)
        for name in TENSOR_FILES
    )
    return Checkpoint(parameters=parameters, moments=moments, progress=progress)


def restore_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    """Put `moments` back; raises CheckpointError where they do not fit the optimiser."""
    try:
        restore_state(optimizer, parameters, moments)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps, if there is one."""
    return folder / f"step-{step:06d}"


def is_complete(path: Path) -> bool:
    """Tell if a checkpoint was written to `path` to its end; it may be damaged since."""
    return (path / STATE_FILE).is_file()


def discard(path: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves none that looks complete.

    What cannot be deleted stays.
    """
    doomed = scratch_of(path)
    with contextlib.suppress(OSError):
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; raises OSError when it cannot be written."""
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
    except SafetensorError as error:  # its own type hides the system's error number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number.group(1))
        raise OSError(code, os.strerror(code), str(file)) from error


def read_tensors(
    file: Path, *, expected: str | None, index: Path, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of `file` after a check of its bytes.

    Args:
        file: A safetensors file.
        expected: Its SHA-256 by `index`.
        index: The file that holds the sums; messages name it.
        device: The device to load to.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: The file is damaged or cannot be read; the message names it.
    """
    check_hash(file, expected=expected, index=index)
    try:
        return load_file(file, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def check_hash(file: Path, *, expected: str | None, index: Path) -> None:
    """Raise CheckpointError unless `file` has the SHA-256 `expected`, by the file `index`."""
    if file.is_symlink():
        raise CheckpointError(f"{file} is a symbolic link, which is not followed")
    try:
        found = content_hash(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if found != expected:
        raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {index.name}")


def _saved(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield every checkpoint; one without its `state.json` is damaged, for it appeared whole."""
    if folder.is_dir():
        for path in folder.iterdir():
            if (match := STEP_FOLDER.fullmatch(path.name)) and path.is_dir():
                yield int(match.group(1)), path
