"""run(2N) equals run(N) and its resume bit for bit, for every preset of every axis.

Here in miniature, on one process; `benchmarks.faults` does the same on the real command line, with
SIGKILL and at random steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from oracles import options
from tiny_run import CPU, Recorder, tiny_run

from rlkit.oracle.compose import composed
from rlkit.tracking import comparable
from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint
from rlkit.training.optim import OptimConfig, Schedule
from rlkit.training.progress import restore
from rlkit.training.stopping import Interrupted, StopRequest

GROUPS = ("algorithm", "kl", "ratio", "correction")
PRESETS = [f"{group}={name}" for group in GROUPS for name in options(group)]
EVERY_TIME = ("grpo", "dapo", "ppo", "online_dpo", "gspo", "bnpo", "reinforce_pp", "unsloth_2025")
"""These bring each kind of state that a run has; the axes and the other presets shape a loss."""
SEVERAL = OptimConfig(learning_rate=0.02, inner_epochs=2, minibatches=2)
STEPS = 3


def trained(
    folder: Path, preset: str, *, stop_at: int | None, tokens: int, optim: OptimConfig
) -> tuple[Checkpoint, list[dict[str, object]], list[object]]:
    """The last checkpoint, metrics and evaluations of a run, interrupted after `stop_at` steps."""
    objective = composed(preset, "algorithm.group_size=4")
    if objective.ratio.old == "current" and not objective.ratio.detach:
        optim = replace(optim, inner_epochs=1, minibatches=1)
    recorders: list[Recorder] = []
    for half in (stop_at, None) if stop_at is not None else (None,):
        trainer, state, recorder = tiny_run(
            folder,
            num_steps=STEPS,
            objective=objective,
            optim=optim,
            tokens_per_microbatch=tokens,
            resample=objective.algorithm.group_filter == "resample",
        )
        schedule = replace(trainer.schedule, evaluate_every=1, checkpoint_every=2)
        trainer = replace(trainer, schedule=schedule)
        recorders.append(recorder)
        saved, problems = checkpoint.load_newest(folder / "checkpoints", device=CPU)
        assert problems == []
        if saved is not None:
            state = restore(state, saved)
        stop = StopRequest()
        if half is not None:
            recorder.step = _stopping(recorder, half, stop)  # type: ignore[method-assign, assignment]
            with pytest.raises(Interrupted):
                trainer.fit(state, stop=stop)
            continue
        made = {record.label for r in recorders for record in r.evaluations}
        trainer.fit(state, stop=stop, on_record=made)
    last = checkpoint.load(checkpoint.step_folder(folder / "checkpoints", STEPS), device=CPU)
    steps = [comparable(record.metrics) for r in recorders for record in r.steps]
    evaluations: list[object] = [
        (e.label, e.step, e.values, e.interval, comparable(e.metrics))
        for r in recorders
        for e in r.evaluations
    ]
    return last, steps, evaluations


def _stopping(recorder: Recorder, steps: int, stop: StopRequest) -> object:
    def step(record: object) -> None:
        recorder.steps.append(record)  # type: ignore[arg-type]
        if len(recorder.steps) == steps:
            stop.request("test")

    return step


def _case(number: int, preset: str) -> ParameterSet:
    marks = () if preset.removeprefix("algorithm=") in EVERY_TIME else (pytest.mark.nightly,)
    return pytest.param(number, preset, marks=marks, id=preset)


@pytest.mark.parametrize(
    ("number", "preset"), [_case(number, preset) for number, preset in enumerate(PRESETS)]
)
def test_resume_is_bitwise(tmp_path: Path, number: int, preset: str) -> None:
    """Steps, splits and schedules take turns, so that each meets every kind of preset."""
    kinds = {"optim": SEVERAL, "tokens": (10_000, 30, 1)[number % 3]}
    if number % 2:
        kinds["optim"] = OptimConfig(learning_rate=0.02, schedule=Schedule.cosine)
    if preset == "algorithm=bnpo":  # its gradient is that of whole batches
        kinds["tokens"] = 0
    whole = trained(tmp_path / "whole", preset, stop_at=None, **kinds)  # type: ignore[arg-type]
    parts = trained(tmp_path / "parts", preset, stop_at=1 + number % 2, **kinds)  # type: ignore[arg-type]
    assert parts[0].progress == whole[0].progress
    for name in ("parameters", "moments"):
        ours, theirs = getattr(parts[0], name), getattr(whole[0], name)
        assert ours.keys() == theirs.keys() and ours
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), name
    assert repr(parts[1]) == repr(whole[1])
    assert repr(parts[2]) == repr(whole[2])
    assert len(whole[1]) == STEPS and len(whole[2]) == STEPS + 1
