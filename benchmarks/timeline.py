"""Steps of a workload by the size of the micro-batch, and the kernels of decoding and updating.

    python -m benchmarks.timeline --work W1 [--tokens 8192,20480] [--steps 3] [--out FOLDER]

One process: the run is assembled as from rlkit's command line (`benchmarks.step`), then makes steps
with each size of micro-batch; the first is a warm-up. With `--profile` the kernels of some decoding
steps, of scoring and of one update follow as text. `--set` adds options to rlkit's command line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ending import exit_on_sigterm
from benchmarks.kernel_trace import by_name, in_order, kernels_of, one_step
from benchmarks.random_model import write_random_model
from benchmarks.side import Result, memory_folder, write_report
from benchmarks.step_sides import Work, rlkit_overrides, write_prompts
from benchmarks.workloads import WORKLOADS
from rlkit.assembly.assemble import assemble
from rlkit.assembly.model_run import ModelRun
from rlkit.config import load
from rlkit.launch.composing import register
from rlkit.tracking.base import EvalRecord, Level, Outcome, Phase, RunInfo, StepRecord
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collector
from rlkit.training.microbatch import minibatches
from rlkit.training.score import score
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState, train_step

_MODULE = "benchmarks.timeline"
_PHASES = ("generate", "reward", "score", "update", "sync", "step")
_PROFILED_TOKENS = 64
_SAMPLER = "_parts_kernel"
"""Part of the name of the kernel that looks up a sampled token's logp, once a decoding step."""


@dataclass(slots=True)
class Recorder:
    """A tracker that keeps the metrics of each step."""

    steps: list[dict[str, float]] = field(default_factory=list)

    def start(self, info: RunInfo) -> None:
        """Take no notice."""

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Take no notice."""

    def step(self, record: StepRecord) -> None:
        """Keep the metrics."""
        self.steps.append(dict(record.metrics))

    def evaluation(self, record: EvalRecord) -> None:
        """Take no notice."""

    def message(self, level: Level, text: str) -> None:
        """Print it."""
        print(f"{level.value}: {text}", flush=True)

    def finish(self, outcome: Outcome) -> None:
        """Take no notice."""

    def close(self, deadline_s: float) -> None:
        """Take no notice."""


def main() -> int:
    """Measure what the options name."""
    options = _arguments()
    shape = WORKLOADS[options.work]
    sizes = [int(size) for size in options.tokens.split(",")]
    with memory_folder() as root:
        work = Work(
            folder=Path(root) / shape.shape,
            num_prompts=shape.prompts,
            num_samples=shape.samples,
            new_tokens=shape.new_tokens,
            warmup=1,
            steps=len(sizes) * options.steps + 1,
            trl_rows=8,
            overrides=tuple(options.set),
        )
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        write_random_model(work.folder, shape.shape, dtype=dtype)
        write_prompts(work)
        with closing(_assembled(work)) as run:
            results = _measured(run, work, sizes, options)
    if options.out:
        write_report(options.out / f"{options.work}.json", _MODULE, shape._asdict(), results)
    print(json.dumps({name: found["median"] for name, found in results.items()}), flush=True)
    return 0


def _assembled(work: Work) -> ModelRun:
    from hydra import compose, initialize_config_module

    register()
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        overrides = rlkit_overrides(work, work.folder / "rlkit-run")
        config = load(compose("config", overrides=overrides))
    return assemble(config, say=lambda line: print(line, flush=True))


def _measured(
    run: ModelRun, work: Work, sizes: Sequence[int], options: argparse.Namespace
) -> dict[str, Result]:
    recorder, stop = Recorder(), StopRequest()
    state = run.initial_state()
    trainer = run.trainer(recorder, stop, run_dir=work.folder / "rlkit-run")
    trainer.generator.load_adapter(state.learner.adapter, state.updates)
    state = trainer.run_step(state, stop)  # compiles kernels and fills caches
    results: dict[str, Result] = {}
    for size in sizes:
        settings = trainer.settings._replace(tokens_per_microbatch=size)
        sized = replace(trainer, settings=settings)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for _ in range(options.steps):
            state = sized.run_step(state, stop)
        results[str(size)] = _result(recorder.steps[-options.steps :])
        print(f"{options.work} {size} tokens: {results[str(size)]['median']}", flush=True)
    if options.profile:
        settings = trainer.settings._replace(tokens_per_microbatch=sizes[-1])
        text = profiled(replace(trainer, settings=settings), state, options.groups, work.folder)
        if options.out:
            (options.out / f"{options.work}_kernels.txt").write_text(text)
        print("\n".join(text.splitlines()[:60]), flush=True)
    return results


def _result(steps: Sequence[dict[str, float]]) -> Result:
    seconds = {phase: [step[f"time/{phase}"] for step in steps] for phase in _PHASES}
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {
        "seconds": seconds,
        "median": {phase: round(statistics.median(v), 4) for phase, v in seconds.items()},
        "reserved_peak_gb": peak / 1e9,
        "mismatch": {k: v for k, v in steps[-1].items() if k.startswith("sampling/")},
    }


def profiled(trainer: Trainer, state: TrainState, groups: int, folder: Path) -> str:
    """Return the kernels of a short call of the generator, of scoring and of one update.

    Args:
        trainer: The run's; nothing of it changes but the policy, by one update.
        state: The policy and its optimiser.
        groups: Groups of a step that are scored and learnt from; 0 = all.
        folder: Takes the profiler's files.

    Returns:
        The text.
    """
    clock = StepClock(trainer.device)
    version = state.updates
    whole = trainer.collector.collect(state.step, policy_version=version, clock=clock).groups
    sampling = trainer.collector.sampling
    num_tokens = min(_PROFILED_TOKENS, sampling.max_completion_length)
    short = sampling._replace(max_completion_length=num_tokens)
    assert isinstance(trainer.collector, Collector)
    collector = replace(trainer.collector, sampling=short)

    def decode() -> None:
        collector.collect(state.step, policy_version=version, clock=clock)
        _wait()

    decode()
    decoding = kernels_of(decode, folder)
    batch = collate(
        whole[: groups or None],
        reward_weights=trainer.collector.rewards.weights,
        pad_token_id=trainer.pad_token_id,
        device=trainer.device,
    )
    algorithm, made = trainer.algorithm(state.step), list[Any]()

    def scoring() -> None:
        made.append(algorithm.prepare(score(state.learner, batch, algorithm, trainer.settings)))
        _wait()

    def updating() -> None:
        (part,) = minibatches(made[-1], num_minibatches=1, seed=0)
        train_step(state, part, algorithm, trainer.settings)
        _wait()

    scoring()
    updating()
    tokens = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    parts = [
        (f"decoding, {num_tokens} tokens a row", by_name(decoding)),
        (f"scoring, {len(batch)} rows, {tokens} tokens", by_name(kernels_of(scoring, folder))),
        (f"update, {len(batch)} rows, {tokens} tokens", by_name(kernels_of(updating, folder))),
        ("one decoding step", in_order(one_step(decoding, _SAMPLER))),
    ]
    return "".join(f"## {title}\n" + "\n".join(lines) + "\n\n" for title, lines in parts)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--work", choices=sorted(WORKLOADS), default="W1")
    parser.add_argument("--tokens", default="8192", help="of a micro-batch, by commas")
    parser.add_argument("--steps", type=int, default=3, help="measured with each size")
    parser.add_argument("--profile", action="store_true", help="write the kernels as text")
    parser.add_argument("--groups", type=int, default=0, help="groups that are profiled; 0 = all")
    parser.add_argument("--out", type=Path, help="a folder for the numbers and the text")
    parser.add_argument("--set", action="append", default=[], help="an option of rlkit")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
