"""Real runs of a tiny model on the command line, and the comparison of two of them, bit for bit."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from byte_model import write_byte_model
from safetensors.torch import load_file
from warm_cli import Forks, Run

from rlkit.tracking import comparable, read_samples
from rlkit.tracking.files import read_lines

STEPS = 6
REWARD = '''
def digits(group):
    """Return the share of characters that are digits or letters before `n`."""
    return [sum(c.isdigit() or "a" <= c < "n" for c in x.text) / 8 for x in group]
'''
_VOLATILE_PROGRESS = ("train_seconds",)


@functools.cache
def forks() -> Forks:
    """Return the process that starts all runs; it ends with this one."""
    return Forks(Path(tempfile.mkdtemp(prefix="rlkit-faults-")))


def prepare(folder: Path) -> list[str]:
    """Write a tiny model and a reward into `folder`; return the overrides of a run of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        write_byte_model(folder / "model")
        (folder / "faults_reward.py").write_text(REWARD)
    return [
        "model.source=model",
        "device=cpu",
        "task=max_of_n",
        "task.max_completion_length=8",
        f"steps={STEPS}",
        "prompts_per_step=2",
        "algorithm.group_size=4",
        "evaluation.num_prompts=2",
        "evaluation.samples_per_prompt=1",
        "evaluation.every=2",
        "checkpoint.every=2",
        "memory.torch_threads=1",
        "reward.workers=1",
        "tracker.plot=false",
        "tracker.report=false",
        "+reward.functions.digits.fn=faults_reward.py:digits",
    ]


def start(folder: Path, name: str, overrides: Sequence[str]) -> Run:
    """Start a run in `folder`/`name`, or go on with it."""
    return forks().start(f"run_dir={name}", "resume=auto", *overrides, cwd=folder)


def finish(folder: Path, name: str, overrides: Sequence[str], *, timeout_s: float = 300.0) -> str:
    """Run to the end; return what went wrong, or an empty text."""
    done = start(folder, name, overrides).finish(timeout_s)
    said = " ".join(done.stderr.split())[-300:]
    return "" if done.returncode == 0 else f"exit {done.returncode}: {said}"


def differences(run: Path, truth: Path) -> list[str]:
    """Return what differs between two finished runs of one configuration, beyond times and speed.

    Compared are metrics, evaluations, completions, the rollouts that both kept, weights, moments
    and progress of the last checkpoint, and what was saved at the end.
    """
    found = []
    for name in ("metrics.jsonl", "evals.jsonl"):
        if _lines(run / name) != _lines(truth / name):
            found.append(name)
    ours, theirs = (_files(folder, "completions", ".parquet") for folder in (run, truth))
    if ours.keys() != theirs.keys():
        found.append(f"completions: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    found += [
        f"completions/{name}"
        for name in ours.keys() & theirs.keys()
        if repr(read_samples(ours[name])) != repr(read_samples(theirs[name]))
    ]
    ours, theirs = (_files(folder, "rollouts", ".safetensors") for folder in (run, truth))
    found += [
        f"rollouts/{name}"
        for name in ours.keys() & theirs.keys()
        if not same_tensors(ours[name], theirs[name])
    ]
    return found + _differing_checkpoints(run, truth)


def _differing_checkpoints(run: Path, truth: Path) -> list[str]:
    ours, theirs = (max((folder / "checkpoints").glob("step-*")) for folder in (run, truth))
    if ours.name != theirs.name:
        return [f"last checkpoint {ours.name}, not {theirs.name}"]
    found = [
        name
        for name in ("adapter.safetensors", "optimizer.safetensors")
        if not same_tensors(ours / name, theirs / name)
    ]
    if _progress(ours) != _progress(theirs):
        found.append("state.json")
    for file in sorted(p for f in ("adapter", "model") for p in (truth / f).glob("*.safetensors")):
        if not same_tensors(run / file.relative_to(truth), file):
            found.append(file.name)
    return found


def same_tensors(one: Path, other: Path) -> bool:
    """Tell if two files hold the same tensors bit for bit, NaN equal to itself."""
    if not (one.exists() and other.exists()):
        return False
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a
    )


def family(run: Run) -> list[psutil.Process]:
    """Return the processes that a run has started; none when it has ended by itself just now."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(run.pid).children(recursive=True)
    return found


def leftovers(run: Path) -> list[Path]:
    """Return the half-written files and folders below a run's folder."""
    return [path for path in run.rglob("*") if path.name.endswith(".partial")]


def wait_for(path: Path, run: Run, *, timeout_s: float = 120.0) -> bool:
    """Wait until `path` exists or the run has ended; tell if it exists."""
    give_up = time.monotonic() + timeout_s
    while not path.exists():
        if run.poll() is not None or time.monotonic() > give_up:
            return path.exists()
        time.sleep(0.005)
    return True


def status(run: Path) -> str:
    """Return what `status.json` says, or why it cannot be read."""
    try:
        return str(json.loads((run / "status.json").read_text())["status"])
    except (OSError, ValueError, KeyError) as error:
        return type(error).__name__


def _lines(file: Path) -> list[tuple[str, dict[str, object]]]:
    """Return the records without times, by step and label: the order is that of their writing."""
    records = [comparable(line) for line in read_lines(file)]
    keyed = [(f"{int(float(str(r['step']))):06d} {r.get('label', '')}", r) for r in records]
    return sorted(keyed, key=lambda pair: pair[0])


def _files(run: Path, folder: str, suffix: str) -> dict[str, Path]:
    return {path.name: path for path in (run / folder).glob(f"*{suffix}")}


def _progress(checkpoint: Path) -> dict[str, Any]:
    progress = json.loads((checkpoint / "state.json").read_text())["progress"]
    return {key: value for key, value in progress.items() if key not in _VOLATILE_PROGRESS}


def variants() -> Iterator[tuple[str, list[str]]]:
    """Yield the configurations whose runs are killed: one for each kind of state that runs have."""
    several = ["optim.inner_epochs=2", "optim.minibatches=2"]
    small = ["memory.tokens_per_microbatch=40"]
    yield "grpo", []
    yield "dapo, groups resampled", ["algorithm=dapo", "algorithm.group_filter=resample"]
    yield "ppo, with its critic", ["algorithm=ppo", *several]
    yield "online_dpo, pairs", ["algorithm=online_dpo"]
    yield "rloo", ["algorithm=rloo"]
    yield "gspo, micro-batches", ["algorithm=gspo", *small]
    yield "several updates a batch", several
    yield "all weights", ["model.tuning=full", "optim.learning_rate=1e-4"]
    yield "8-bit moments", ["optim=adamw8bit", "model.lora.rank=16"]
    yield "a cosine schedule", ["optim.schedule=cosine", "optim.warmup_steps=2"]
    yield "reinforce_pp", ["algorithm=reinforce_pp", *small]


TABLES = [
    *("model=tabular", "steps=20", "checkpoint.every=2", "evaluation.every=5"),
    *("tracker.plot=false", "tracker.report=false", "memory.torch_threads=1"),
]
"""A run whose model is an exact table: the same loop and files, at a quarter of the time."""


def tables() -> Iterator[tuple[str, list[str]]]:
    """Yield configurations on tables whose runs are killed."""
    yield "tables, grpo", TABLES
    yield "tables, rloo", [*TABLES, "algorithm=rloo"]
    yield "tables, ppo", [*TABLES, "algorithm=ppo_tabular"]
    yield "tables, dapo", [*TABLES, "algorithm=dapo"]
    yield "tables, several updates", [*TABLES, "optim.inner_epochs=2", "optim.minibatches=2"]
    yield "tables, cosine", [*TABLES, "optim.schedule=cosine", "kl=forward_exact"]
