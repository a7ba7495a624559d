"""A checkpoint is a folder of safetensors and JSON that appears whole or not at all. No pickle.

    checkpoints/step-000004/{adapter.safetensors, optimizer.safetensors, state.json}

`adapter.safetensors` holds what trains: an adapter, or the float32 masters of all weights, with a
critic if there is one. `state.json` is written last and holds the SHA-256 of the other files.
Nothing random is stored: every seed is a pure function of (run seed, step, prompt, sample), so a
resumed run repeats itself.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkit.runtime.files import published
from rlkit.schema import content_hash
from rlkit.training.loss_scale import UNSCALED, LossScale
from rlkit.training.optim import restore_state

_FILES = ("adapter.safetensors", "optimizer.safetensors")
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointError(ValueError):
    """A saved file is missing, incomplete or damaged; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The place where a run stands between two steps."""

    step: int
    """Steps completed."""
    updates: int
    """Optimiser updates done: the policy version."""
    skipped_in_row: int
    """Consecutive updates skipped for a non-finite gradient."""
    config_hash: str
    """Hash of everything in the configuration that can change a number."""
    no_reward_in_row: int = 0
    """Last steps in a row in which no sample had a reward."""
    no_signal_in_row: int = 0
    """Last steps in a row in which no sample earned anything and no group's rewards differed."""
    samples: int = 0
    """Completions sampled so far."""
    train_seconds: float = field(default=0.0, compare=False)
    """Seconds of the steps so far."""
    loss_scale: LossScale = UNSCALED
    success: dict[str, float] = field(default_factory=dict)
    """How often each part of a mixture was right; empty without a curriculum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on: parameters, optimiser moments by parameter name, progress."""

    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`{parameter}/{exp_avg, exp_avg_sq, step}`, or what else the optimiser keeps."""
    progress: RunProgress


def save(folder: Path, checkpoint: Checkpoint, *, keep_last: int) -> Path:
    """Write `checkpoint` under `folder`, delete all but the `keep_last` newest, return its path."""
    target = step_folder(folder, checkpoint.progress.step)
    folder.mkdir(parents=True, exist_ok=True)
    with published(target) as scratch:
        scratch.mkdir()
        for name, tensors in zip(_FILES, (checkpoint.parameters, checkpoint.moments), strict=True):
            write_tensors(scratch / name, tensors)
        hashes = {name: content_hash(scratch / name) for name in _FILES}
        state = {"progress": asdict(checkpoint.progress), "sha256": hashes}
        (scratch / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for _, old in sorted(_complete(folder))[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, *, device: torch.device) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, or None, and a line for each damaged one."""
    problems: list[str] = []
    for _, path in sorted(_complete(folder), reverse=True):
        try:
            return load(path, device=device), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def load(path: Path, *, device: torch.device) -> Checkpoint:
    """Return the checkpoint at `path`, verified; a CheckpointError names the file that is wrong."""
    state_file = path / "state.json"
    try:
        state = json.loads(state_file.read_text())
        fields = state["progress"]
        scale = LossScale(*fields.pop("loss_scale", ()))
        progress = RunProgress(**fields, loss_scale=scale)
        hashes: dict[str, str] = state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{state_file} cannot be read: {error}") from error
    parameters, moments = (
        read_tensors(path / name, expected=hashes.get(name), index=state_file, device=device)
        for name in _FILES
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
    return (path / "state.json").is_file()


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)


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
    try:
        if content_hash(file) != expected:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {index.name}")
        return load_file(file, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _complete(folder: Path) -> Iterator[tuple[int, Path]]:
    if folder.is_dir():
        for path in folder.iterdir():
            if (match := _NAME.fullmatch(path.name)) and is_complete(path):
                yield int(match.group(1)), path
