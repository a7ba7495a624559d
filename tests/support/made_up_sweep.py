"""Made-up sweeps: run folders that the real tracker wrote, with known final numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from tracked_run import evaluation, info, record

from rlkit.tracking import Interval, Level, Redactor, Status
from rlkit.tracking.local import LocalTracker

BASE = {
    "seed": 0,
    "steps": 12,
    "prompts_per_step": 6,
    "task": {"name": "echo"},
    "algorithm": {"group_size": 8, "clip_low": 0.2},
    "kl": {"estimator": "k3", "beta": 0.04, "placement": "loss"},
    "model": {"source": "starter", "hub_token": "hf_canary123456"},
}

FINALS = {
    "kl=reverse_k3": [0.90, 0.92, 0.94, 0.91, 0.93],
    "kl=unsloth_full_reverse": [0.905, 0.918, 0.946, 0.912, 0.929],
    "kl=none": [0.96, 0.97, 0.99, 0.975, 0.985],
    "ratio=no_detach": [0.2] * 5,
    "kl=reverse_k1_reward": [0.88],
}
"""Success after training, by variant and seed."""


def write_run(
    folder: Path,
    *,
    seed: int,
    final: float,
    kl: float | None = 1.5,
    options: Mapping[str, Mapping[str, object]] | None = None,
    steps: int = 12,
    status: Status = Status.completed,
    message: str = "",
    evals: Sequence[int] = (0, 12),
    dead: bool = False,
    completions: bool = False,
    bad: bool = False,
) -> None:
    """A run whose last evaluation has success `final` exactly; `bad` writes NaN there."""
    folder.mkdir(parents=True)
    config = {**BASE, "seed": seed, "run_dir": str(folder)}
    for group, values in (options or {}).items():
        config[group] = {**config.get(group, {}), **values}  # type: ignore[dict-item]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    tracker = LocalTracker(folder, Redactor(), completions=completions, plot=False)
    tracker.start(replace(info(folder), name=folder.name, config=config))
    draw = random.Random(seed)
    for done in range(steps + 1):
        if done in evals:
            share = done / 12
            mean = math.nan if bad and done else 0.2 + (final - 0.2) * share
            found = evaluation(
                "before" if done == 0 else "after" if done == 12 else f"step {done}",
                done,
                rate=min(1.0, max(0.0, 0.0 if bad else mean)),
            )
            metrics = {"samples": 48.0 * done, "time/train": 17.5 * done, "entropy": 1.4 - share}
            if kl is not None:
                metrics["kl"] = 0.0 if dead else kl * share
            interval = Interval(mean, mean - 0.1, mean + 0.1)
            tracker.evaluation(replace(found, interval=interval, metrics=metrics))
        if done < steps:
            step = record(done, seed=seed)
            metrics = {
                **step.metrics,
                "rollouts/sampled": 48.0,
                "reward": 0.2 + (final - 0.2) * done / 12 + draw.gauss(0, 0.02),
            }
            if dead:
                metrics |= {"grad_norm": 0.0, "reward": 0.2}
            tracker.step(
                replace(step, metrics=metrics, samples=step.samples if completions else ())
            )
    tracker.message(Level.info, "over")
    tracker.close(5.0)
    ended = {"status": status.value, "message": message, "pid": 1, "time": 1.0}
    (folder / "status.json").write_text(json.dumps(ended))
    if status is Status.completed:
        (folder / "DONE").touch()


def write_sweep(
    folder: Path, jobs: Sequence[tuple[str, Sequence[str]]], *, name: str = "made_up"
) -> None:
    """`sweep.json` for jobs given as (id, overrides)."""
    folder.mkdir(parents=True, exist_ok=True)
    contract = {
        "version": 1,
        "name": name,
        "command": ["rlkit", "-m", "kl=reverse_k3,none", "seed=range(5)"],
        "created": "2026-11-21T17:00:00+00:00",
        "jobs": [{"id": i, "overrides": list(o), "folder": f"jobs/{i}"} for i, o in jobs],
    }
    (folder / "sweep.json").write_text(json.dumps(contract))
