"""`state.json` of a checkpoint: where a run stands, under a hash of its own."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.training.loss_scale import UNSCALED, LossScale

STATE_FILE = "state.json"
STEP_FOLDER = re.compile(r"step-(\d{6,})")
TENSOR_FILES = ("adapter.safetensors", "optimizer.safetensors")
_SEAL = "sha256_of_this"


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
    microbatch_divisor: int = 1
    """Tokens of a micro-batch are divided by this since memory ran out."""
    success: dict[str, float] = field(default_factory=dict)
    """How often each part of a mixture was right; empty without a curriculum."""


def seal(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return `state` with the SHA-256 of what it says."""
    return {**state, _SEAL: _digest(state)}


def read_state(path: Path) -> tuple[RunProgress, dict[str, str]]:
    """Return what `state.json` of the checkpoint at `path` says: progress, SHA-256 by file.

    Older versions wrote no hash of it; what they wrote is checked for sense only.

    Raises:
        CheckpointError: It is damaged, or belongs to another step; the message names it.
    """
    file = path / STATE_FILE
    for part in (path, file):
        if part.is_symlink():
            raise CheckpointError(f"{part} is a symbolic link, which is not followed")
    try:
        state = json.loads(file.read_text())
        said = state.pop(_SEAL, None)
        if said is not None and said != _digest(state):
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one it says")
        if set(state) != {"progress", "sha256"}:
            raise CheckpointError(f"{file} is damaged: it holds {sorted(state)}")
        progress, hashes = _progress(state["progress"]), dict(state["sha256"])
    except CheckpointError:
        raise
    # A recursion that is too deep is a file of brackets.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if set(hashes) != set(TENSOR_FILES) or not all(isinstance(h, str) for h in hashes.values()):
        raise CheckpointError(f"{file} is damaged: it has no SHA-256 of each file")
    match = STEP_FOLDER.fullmatch(path.name)
    if match and int(match.group(1)) != progress.step:
        raise CheckpointError(f"{file} is damaged: its step is {progress.step}")
    return progress, hashes


def _progress(fields: Mapping[str, Any]) -> RunProgress:
    """Return the progress that JSON holds; raises ValueError or TypeError for nonsense."""
    fields = dict(fields)
    scale = LossScale(*fields.pop("loss_scale", ()))
    progress = RunProgress(**fields, loss_scale=scale)
    counts = ("step", "updates", "skipped_in_row", "no_reward_in_row", "no_signal_in_row")
    for name in (*counts, "samples", "microbatch_divisor"):
        value = getattr(progress, name)
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value}")
    for name, number in (("train_seconds", progress.train_seconds), *scale._asdict().items()):
        if type(number) not in (int, float) or not 0 <= number < math.inf:
            raise ValueError(f"{name} is {number}")
    return progress


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
