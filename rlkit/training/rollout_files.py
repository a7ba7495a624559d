"""Rollout batches lie on disk for `rlkit replay`, as safetensors and JSON. No pickle.

    rollouts/step-000005.{safetensors, json}

The JSON is written last and holds the SHA-256 of the tensors, so a batch is there whole or not at
all. Only batches whose policy can be had again are kept. They are that of step 0, whose adapter is
fresh, and those sampled right after a checkpoint that still exists.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from rlkit.runtime.files import published
from rlkit.schema import content_hash
from rlkit.tracking.files import write_atomic
from rlkit.training.checkpoint import (
    CheckpointError,
    is_complete,
    read_tensors,
    step_folder,
    write_tensors,
)
from rlkit.types import RolloutBatch

_NAME = re.compile(r"step-(\d{6,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRollouts:
    """A rollout batch with what an algorithm must know to score it."""

    batch: RolloutBatch
    step: int
    """Steps completed when it was sampled: its policy is that of this step's checkpoint."""
    reward_names: tuple[str, ...]
    """The names of the columns of `batch.reward_components`, in order."""
    group_size: int
    """Completions sampled per prompt; a group has fewer rows where rewards failed."""
    temperature: float
    max_completion_length: int


def save(run_dir: Path, rollouts: SavedRollouts) -> Path:
    """Write `rollouts` into the run's folder and return the file of tensors."""
    file = _file(run_dir, rollouts.step)
    file.parent.mkdir(parents=True, exist_ok=True)
    index = file.with_suffix(".json")
    values = {f.name: getattr(rollouts.batch, f.name) for f in fields(rollouts.batch)}
    with published(file) as scratch:
        write_tensors(scratch, {k: v for k, v in values.items() if isinstance(v, Tensor)})
        record = {
            "step": rollouts.step,
            "reward_names": rollouts.reward_names,
            "group_size": rollouts.group_size,
            "temperature": rollouts.temperature,
            "max_completion_length": rollouts.max_completion_length,
            "sha256": content_hash(scratch),
        }
        # A resumed run writes its first step again: no moment with new tensors and an old hash.
        index.unlink(missing_ok=True)
    write_atomic(index, (json.dumps(record, indent=2) + "\n").encode())
    return file


def load(run_dir: Path, step: int, *, device: torch.device) -> SavedRollouts:
    """Return the batch of `step`, verified; a CheckpointError names the file that is wrong."""
    file = _file(run_dir, step)
    index = file.with_suffix(".json")
    try:
        record = json.loads(index.read_text())
        tensors = read_tensors(file, expected=record["sha256"], index=index, device=device)
        return SavedRollouts(
            batch=RolloutBatch(**tensors),
            step=int(record["step"]),
            reward_names=tuple(record["reward_names"]),
            group_size=int(record["group_size"]),
            temperature=float(record["temperature"]),
            max_completion_length=int(record["max_completion_length"]),
        )
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error


def saved_steps(run_dir: Path) -> list[int]:
    """Return the steps whose batches the run's folder holds, in order."""
    folder = _file(run_dir, 0).parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match.group(1)) for match in map(_NAME.fullmatch, names) if match)


def is_recoverable(run_dir: Path, step: int) -> bool:
    """Tell if the policy after `step` steps can be had again: fresh, or from a checkpoint."""
    return step == 0 or is_complete(step_folder(run_dir / "checkpoints", step))


def prune(run_dir: Path) -> None:
    """Delete the batches whose checkpoint is gone."""
    for step in saved_steps(run_dir):
        if not is_recoverable(run_dir, step):
            file = _file(run_dir, step)
            file.with_suffix(".json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _file(run_dir: Path, step: int) -> Path:
    return run_dir / "rollouts" / f"step-{step:06d}.safetensors"
