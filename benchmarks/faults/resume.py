"""Exact resume: run(2N) equals run(N) and its resume, bit for bit, for every preset there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.faults.row import Row
from benchmarks.faults.runs import STEPS, differences, finish, prepare, start, wait_for

ROOT = Path(__file__).parent.parent.parent
_GROUPS = ("algorithm", "kl", "ratio", "correction", "memory", "optim")
_NOT_ON_A_TINY_MODEL = {
    "memory=qlora": "needs CUDA",
    "algorithm=ppo_tabular": "is for tables",
}
_HALF = 4
"""Steps of the short run; a run of all steps has an evaluation there as well."""


def cases() -> Iterator[tuple[str, list[str]]]:
    """Yield every option of every group that shapes the training, and what presets do not turn."""
    for group in _GROUPS:
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            name = f"{group}={file.stem}"
            if name not in _NOT_ON_A_TINY_MODEL:
                yield name, [name]
    several = ["optim.inner_epochs=2", "optim.minibatches=2"]
    yield "micro-batches of one row", ["memory.tokens_per_microbatch=1"]
    yield "micro-batches of two rows", ["memory.tokens_per_microbatch=80"]
    yield "several updates a batch", several
    yield "resampling", ["algorithm.group_filter=resample"]
    yield "masked groups", ["algorithm.group_filter=mask"]
    yield "a critic, several updates", ["algorithm=ppo", *several]
    yield "all weights", ["model.tuning=full", "optim.learning_rate=1e-4"]
    yield "all weights, several updates", ["model.tuning=full", *several]
    yield "dropped overlong rows", ["task.overlong_prompts=drop"]
    yield "cosine with warm-up", ["optim.schedule=cosine", "optim.warmup_steps=3"]
    yield "linear with weight decay", ["optim.schedule=linear", "optim.weight_decay=0.1"]
    yield "k3 in evaluations", ["evaluation.kl=k3"]
    yield "metrics every second step", ["tracker.metrics_every=2"]
    for file in sorted((ROOT / "conf/experiment").glob("*_smoke.yaml")):
        yield f"experiment={file.stem}", _first_job(file)


def _first_job(file: Path) -> list[str]:
    """Return the overrides of the last job of an experiment's grid, without its sizes.

    The last one is the furthest from the defaults.
    """
    whole = yaml.safe_load(file.read_text())
    overrides = []
    for key, values in whole["hydra"]["sweeper"]["params"].items():
        if key in ("seed", "model", "task", "steps"):
            continue
        last = str(values).rsplit(",", 1)[-1].strip() if "(" not in str(values) else None
        if last is not None:
            overrides.append(f"{key}={last}")
    return overrides


def run(count: int, folder: Path) -> Row:
    """Interrupt `count` configurations once each, and compare with the undisturbed run.

    Every second one is killed by SIGKILL at a random step, the others run some of their steps and
    are then given more: what was the last evaluation of the short run becomes one in between.
    """
    base, draw = prepare(folder), random.Random(1)
    every = list(cases())
    chosen = every if count >= len(every) else draw.sample(every, count)
    survived, notes = 0, list[str]()
    for number, (name, overrides) in enumerate(chosen):
        problem = _compare(folder, number, [*base, *overrides], draw)
        survived += not problem
        notes += [f"{name}: {problem}"] if problem else []
    said = "; ".join(notes[:5]) or (
        "weights, moments, metrics, evaluations, completions and rollouts are equal bit for bit"
    )
    return Row(
        "Exact resume, one configuration each", len(chosen), survived, len(chosen) - survived, said
    )


def _compare(folder: Path, number: int, overrides: list[str], draw: random.Random) -> str:
    truth, parts = f"whole_{number}", f"parts_{number}"
    if problem := finish(folder, truth, overrides):
        return problem
    if number % 2:
        process = start(folder, parts, overrides)
        step = draw.randrange(STEPS)
        wait_for(folder / parts / f"completions/step-{step:06d}.parquet", process)
        process.send_signal(9)
        process.wait(60)
    else:
        half = [o for o in overrides if not o.startswith("steps=")]
        # A schedule that depends on the number of steps is planned from the start.
        planned = any(o.startswith("optim.schedule=") for o in overrides)
        if planned:
            process = start(folder, parts, overrides)
            wait_for(folder / parts / "checkpoints/step-000002", process)
            process.send_signal(15)
            process.wait(60)
        elif problem := finish(folder, parts, [*half, f"steps={_HALF}"]):
            return problem
    if problem := finish(folder, parts, overrides):
        return problem
    wrong = differences(folder / parts, folder / truth)
    return wrong[0] if wrong else ""
