"""This module reads one run folder for the report, whatever state the run is in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from rlkit.tracking import EvalRecord, Redactor, TrackingError, read_metrics, read_samples
from rlkit.tracking.completions import eval_path
from rlkit.tracking.holding import is_held
from rlkit.tracking.read import read_evals

Floats = NDArray[np.float64]
_RUN_FILES = ("status.json", "metrics.jsonl", "config.yaml")


class State(StrEnum):
    """A job is in one of these states."""

    completed = "completed"
    failed = "failed"
    interrupted = "interrupted"
    running = "running"
    missing = "not started"
    unreadable = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job is one run: its configuration, its numbers, and how it ended."""

    id: str
    folder: Path
    overrides: tuple[str, ...] = ()
    state: State
    message: str = ""
    """Why it failed, or what is odd about it; one line."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Resolved configuration, flat, without secrets."""
    seed: int = 0
    steps: Mapping[str, Floats] = field(default_factory=dict)
    """Metrics by name, one value a logged step, NaN where there is none; `step` is always there,
    and so are `samples` and `seconds`, what training took up to the end of the step."""
    evals: tuple[EvalRecord, ...] = ()
    """Without samples."""
    info: Mapping[str, object] = field(default_factory=dict)
    """The content of `run.json`: model, task, device, versions, command."""

    @property
    def done(self) -> bool:
        return self.state is State.completed


def is_run(folder: Path) -> bool:
    """Return whether `folder` holds a run, in whatever state."""
    return any((folder / name).exists() for name in _RUN_FILES)


def read_job(folder: Path, *, job_id: str, overrides: Sequence[str] = ()) -> JobRecord:
    """Return everything about one job.

    It never fails: a folder that cannot be read says so in `message`.
    """
    redactor = Redactor.of_process()
    shown = tuple(redactor.text(text) for text in overrides)
    seed = _seed({}, shown)
    if not is_run(folder):
        return JobRecord(id=job_id, folder=folder, overrides=shown, state=State.missing, seed=seed)
    try:
        config = redactor.config(_config(folder))
        steps = _steps(read_metrics(folder), config)
        evals = tuple(read_evals(folder, samples=False))
        state, message = _state(folder, evals)
        info = _json(folder / "run.json")
    except (TrackingError, OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        text = redactor.text(" ".join(f"{type(error).__name__}: {error}".split()))
        return JobRecord(
            id=job_id,
            folder=folder,
            overrides=shown,
            state=State.unreadable,
            message=text,
            seed=seed,
        )
    return JobRecord(
        id=job_id,
        folder=folder,
        overrides=shown,
        state=state,
        message=redactor.text(message),
        config=config,
        seed=_seed(config, shown),
        steps=steps,
        evals=evals,
        info=info,
    )


def leaves(value: object, *, prefix: str = "") -> dict[str, object]:
    """Return nested mappings as `{"optim.learning_rate": 0.001}`."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, object] = {}
    for key, child in value.items():
        found |= leaves(child, prefix=f"{prefix}.{key}" if prefix else str(key))
    return found


def key_of(override: str) -> str:
    """Return `kl.beta` of `+kl.beta=0.1`."""
    return override.lstrip("+~").partition("=")[0]


def _config(folder: Path) -> dict[str, object]:
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    loaded = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return leaves(loaded) if isinstance(loaded, dict) else {}


def _steps(lines: Sequence[Mapping[str, float]], config: Mapping[str, object]) -> dict[str, Floats]:
    names = dict.fromkeys(name for line in lines for name in line)
    steps = {
        name: np.array([line.get(name, math.nan) for line in lines], dtype=np.float64)
        for name in names
    }
    if not lines:
        return {name: np.zeros(0) for name in ("step", "samples", "seconds")}
    # Runs that log every k-th step stand for the steps in between as well.
    covered = np.diff(steps["step"], prepend=-1.0)
    per_step = _number(config.get("prompts_per_step")) * _number(config.get("algorithm.group_size"))
    sampled = steps.get("rollouts/sampled", np.full(len(lines), per_step))
    seconds = steps.get("time/step", np.full(len(lines), math.nan))
    steps["samples"] = np.cumsum(np.nan_to_num(sampled) * covered)
    steps["seconds"] = np.cumsum(np.nan_to_num(seconds) * covered)
    return steps


def _state(folder: Path, evals: Sequence[EvalRecord]) -> tuple[State, str]:
    status = _json(folder / "status.json")
    name, message = str(status.get("status", "")), str(status.get("message", ""))
    if (folder / "DONE").exists():
        return State.completed, message
    if name == State.running.value and not is_held(folder):
        return State.interrupted, "no process holds it: killed, out of memory, or this is a copy"
    if name in (s.value for s in State):
        return State(name), message
    if any(record.label == "after" for record in evals):
        return State.completed, message
    return State.interrupted, "there is no status.json"


def is_over(folder: Path) -> bool:
    """Return whether nothing is written to a run's folder any more, unless the run is resumed.

    A folder without a run counts as over.
    """
    if (folder / "DONE").exists():
        return True
    try:
        ended = str(_json(folder / "status.json").get("status", State.running))
    except (OSError, ValueError):  # cut, or no object: the report says so
        return True
    return ended != State.running or not is_held(folder)


def _json(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    loaded = json.loads(path.read_text())
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} must hold an object")
    return loaded


def _seed(config: Mapping[str, object], overrides: Sequence[str]) -> int:
    value = config.get("seed")
    if isinstance(value, int):
        return value
    texts = [text.partition("=")[2] for text in overrides if key_of(text) == "seed"]
    return int(texts[-1]) if texts and texts[-1].isdigit() else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def prompt_keys(one: JobRecord, other: JobRecord) -> tuple[Sequence[str], Sequence[str]]:
    """Return the keys of the prompts in two jobs' last evaluations; empty when unknown.

    The keys name prompts by content.

    Runs of older versions recorded no hashes: where the completions were kept, the prompts' own
    texts take their place, on both sides.
    """
    first, second = one.evals[-1], other.evals[-1]
    if first.prompt_keys and second.prompt_keys:
        return first.prompt_keys, second.prompt_keys
    return _prompt_texts(one), _prompt_texts(other)


def _prompt_texts(job: JobRecord) -> list[str]:
    record = job.evals[-1]
    path = eval_path(job.folder, record.label, record.step)
    try:
        texts = {row.prompt_index: row.prompt for row in read_samples(path)}
        return [texts[index] for index in record.prompt_indices]
    except (OSError, ValueError, TypeError, KeyError):  # not kept, or cut
        return []
