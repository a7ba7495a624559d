"""Exact resume: run(2N) equals run(N) and its resume, bit for bit, for every preset there is."""

from __future__ import annotations

import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from digits_environment import MODULE
from fake_judge import FakeJudge, pair_of, tokens_reply
from warm_cli import Run

from benchmarks.faults.row import Row
from benchmarks.faults.runs import STEPS, TABLES, differences, finish, prepare, start, wait_for

ROOT = Path(__file__).parent.parent.parent
_ON_TABLES = ("kl", "ratio", "correction")
_GROUPS = ("algorithm", "kl", "ratio", "correction", "memory", "optim")
_NOT_ON_A_TINY_MODEL = {
    "memory=qlora": "needs CUDA",
    "algorithm=ppo_tabular": "is for tables",
}
_MORE = {"algorithm=sft": ["algorithm.group_size=1"]}
_TURNS = [
    *("task=echo", "task.max_prompt_length=300", "task.max_completion_length=120"),
    *("environment.fn=faults_environment.py:Digits", "environment.max_turn_tokens=12"),
    *("environment.workers=1", "generator.sampling.stop=[a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r]"),
]
_JUDGE = "a judge, whose cache answers"
_OPTIONS = "reward.functions.judge.options"
_JUDGED = [
    *("algorithm=online_dpo", "algorithm.group_size=2", "algorithm.labels=wins", "reward=judge"),
    *(f"{_OPTIONS}.model=fake", f"+{_OPTIONS}.retries=0", "task.max_completion_length=6"),
]
_HALF = 4
"""Steps of the short run; a run of all steps has an evaluation there as well."""
_STEPS_ON_TABLES, _HALF_ON_TABLES = 20, 10


def cases() -> Iterator[tuple[str, list[str]]]:
    """Yield every option of every group that shapes the training, and what presets do not turn."""
    for group in _GROUPS:
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            name = f"{group}={file.stem}"
            if name not in _NOT_ON_A_TINY_MODEL:
                yield name, [name, *_MORE.get(name, [])]
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
    yield "an environment", _TURNS
    yield (
        "an environment, rewards to go",
        [*(*_TURNS, "algorithm=rloo_token", "algorithm.advantage.turns=to_go")],
    )
    yield _JUDGE, _JUDGED
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


class _Taste:
    """A judge that answers a question otherwise when it hears it again after an interruption."""

    def __init__(self) -> None:
        self.again = False
        """Whether the run has been interrupted."""
        self.heard = set[tuple[str, str]]()
        """Questions of the run that is interrupted."""

    def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the probabilities of the two answers."""
        pair = pair_of(body)
        p = 0.05 + 0.9 * zlib.crc32(repr(pair).encode()) / 2**32
        if self.again and pair in self.heard:
            p = 1.0 - p
        self.heard.add(pair)
        return tokens_reply({"A": p, "B": 1.0 - p})


def run(count: int, folder: Path) -> Row:
    """Interrupt `count` configurations once each, and compare with the undisturbed run.

    Every second one is killed by SIGKILL at a random step, the others run some of their steps and
    are then given more: what was the last evaluation of the short run becomes one in between.
    """
    base, draw = prepare(folder), random.Random(1)
    every = list(cases())
    chosen = every if count >= len(every) else draw.sample(every, count)
    (folder / "faults_environment.py").write_text(MODULE)
    survived, notes = 0, list[str]()
    for number, (name, overrides) in enumerate(chosen):
        if name == _JUDGE:
            problem = _compare_judged(folder, number, base, draw)
        else:
            problem = _compare_plain(folder, number, base, name, overrides, draw)
        survived += not problem
        notes += [f"{name}: {problem}"] if problem else []
    said = "; ".join(notes[:5]) or (
        "weights, moments, metrics, evaluations, completions and rollouts are equal bit for bit"
    )
    return Row(
        "Exact resume, one configuration each", len(chosen), survived, len(chosen) - survived, said
    )


def _compare_plain(
    folder: Path, number: int, base: list[str], name: str, overrides: list[str], draw: random.Random
) -> str:
    """Compare two runs on tables where their options alone count, else with the tiny model."""
    killed = number % 2 == 1
    if name.partition("=")[0] in _ON_TABLES:
        problem = _compare(folder, number, [*TABLES, *overrides], draw, killed=killed)
        if not problem.startswith("exit 2"):
            return problem
        shutil.rmtree(folder / f"whole_{number}", ignore_errors=True)  # tables do not have it
    rewarded = base[:-1] if "environment.workers=1" in overrides else base
    return _compare(folder, number, [*rewarded, *overrides], draw, killed=killed)


def _wait_for_step(run: Path, step: int, process: Run) -> None:
    """Wait until `step` steps are on record, or the run has ended."""
    metrics = run / "metrics.jsonl"
    wait_for(metrics, process)
    while process.poll() is None and metrics.read_bytes().count(b"\n") < step:
        time.sleep(0.005)


def _compare_judged(folder: Path, number: int, base: list[str], draw: random.Random) -> str:
    """Compare two runs with a judge: the second must take its old judgments from its cache."""
    taste = _Taste()
    with FakeJudge(taste) as fake:
        words = [*base[:-1], *_JUDGED, f"{_OPTIONS}.url={fake.url}"]

        def reached(place: str) -> None:
            taste.again = place == "interrupted"
            if place == "whole":
                taste.heard.clear()

        # Not killed: a question under way would be asked again, and answered otherwise.
        return _compare(folder, number, words, draw, killed=False, reached=reached)


def _compare(
    folder: Path,
    number: int,
    overrides: list[str],
    draw: random.Random,
    *,
    killed: bool,
    reached: Callable[[str], None] = lambda place: None,
) -> str:
    truth, parts = f"whole_{number}", f"parts_{number}"
    tables = "model=tabular" in overrides
    if problem := finish(folder, truth, overrides):
        return problem
    reached("whole")
    if killed:
        process = start(folder, parts, overrides)
        _wait_for_step(
            folder / parts, draw.randrange(_STEPS_ON_TABLES if tables else STEPS), process
        )
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
        elif problem := finish(
            folder, parts, [*half, f"steps={_HALF_ON_TABLES if tables else _HALF}"]
        ):
            return problem
    reached("interrupted")
    if problem := finish(folder, parts, overrides):
        return problem
    wrong = differences(folder / parts, folder / truth)
    return wrong[0] if wrong else ""
