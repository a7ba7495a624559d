"""`python -m rlkit.bench.memory`: memory of GRPO with QLoRA on models of real shapes.

Random NF4 weights are made on the device; the plan is made for the row's target, and everything
above the target is taken away first by one plain allocation, so that a run that needs more fails.
What is measured is what the device counts as used by this process, its CUDA context included.
Each row has a process of its own; they start together and take turns with the device. `--tiny` runs
small shapes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.bench.card import leave, used_before_this_process
from rlkit.bench.random_nf4 import random_nf4
from rlkit.generation import HFGeneratorConfig
from rlkit.generation.hf import HFGenerator
from rlkit.models.config import ModelConfig
from rlkit.models.load import BaseModel
from rlkit.optim import OptimConfig, build_optimizer
from rlkit.plan.choose import GB, Plan, make_plan
from rlkit.plan.device import Meter
from rlkit.plan.headline import ROWS, Headline
from rlkit.plan.rehearse import full_batch
from rlkit.policy import Policy, new_policy
from rlkit.types import Prompt, SamplingConfig, Setting
from rlkit.update import TrainState, UpdateSettings, score, train_step

_LONG = 50_000
"""Tokens of a step from which one update is enough: its first kernel launches do not matter."""
_SAMPLED = 16
"""Tokens decoded with full caches to see the peak of sampling; the rest takes time, not memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of the table; sizes in GB (10^9 bytes), times in ms."""

    name: str
    claimed: float
    target: float
    planned_sampling: float
    planned_training: float
    sampling: float
    """Peak while sampling; 0 = not measured."""
    training: float
    """Peak of the updates."""
    allocated: float
    """Peak of the allocator during the updates."""
    context: float
    """What the device counted before any tensor."""
    load_ms: float
    score_ms: float
    update_ms: float
    decode_ms: float
    """Of one token of all rows, with full caches."""
    sequences: int
    """Of full length, in the update and the reference's scoring that were timed."""
    tokens_per_microbatch: int
    checkpointing: str
    at_once: int
    optim: str
    device: str
    torch: str
    problem: str
    """What did not fit into the target; empty = nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m rlkit.bench.memory", description=__doc__)
    parser.add_argument("--rows", default="1.5B,8B,14B,70B", help="parts of names of rows")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--no-sampling", action="store_true", help="the updates alone")
    parser.add_argument("--sequences", type=int, help="update on N, at least a micro-batch")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        return _one(options)
    wanted = [row for row in ROWS if any(part in row.name for part in options.rows.split(","))]
    command = " ".join(["python -m rlkit.bench.memory", *(arguments or sys.argv[1:])])
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.json" for i in range(len(wanted))]
        started = [_start(row, path, options) for row, path in zip(wanted, paths, strict=True)]
        for row, path, process in zip(wanted, paths, started, strict=True):
            process.communicate(b"go\n")
            if process.returncode != 0:
                print(f"{row.name}: failed, see above")
                continue
            results.append(json.loads(path.read_text()))
            if options.json is not None:
                found = {"command": command, "python": platform.python_version(), "rows": results}
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    return 0 if len(results) == len(wanted) else 1


def _start(row: Headline, path: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A process that has imported and planned, and waits for a line before it uses the device."""
    flags = [
        f for f, on in (("--tiny", options.tiny), ("--no-sampling", options.no_sampling)) if on
    ]
    if options.sequences is not None:
        flags += ["--sequences", str(options.sequences)]
    command = [sys.executable, "-m", "rlkit.bench.memory", "--one", row.name, "--json", str(path)]
    return subprocess.Popen([*command, *flags], stdin=subprocess.PIPE)


def _one(options: argparse.Namespace) -> int:
    row = next(row for row in ROWS if row.name == options.one)
    row = tiny(row) if options.tiny else row
    on_cuda = torch.cuda.is_available()
    work = replace(row.work(), on_cuda=on_cuda)
    plan = make_plan(work, row.request(), budget=int(row.target * GB))
    sys.stdin.readline()
    if on_cuda:
        # Long sequences want large blocks: with fixed segments the holes alone would not fit.
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    whole = plan.choice.tokens_per_microbatch // work.row_tokens
    sequences = min(max(options.sequences or row.rows, whole), row.rows)
    measured = measure(row, plan, sequences=sequences, sampling=not options.no_sampling)
    options.json.write_text(json.dumps(asdict(measured)))
    return 0


def tiny(row: Headline) -> Headline:
    """The same kind of model, small."""
    shape = row.shape | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 997,
    }
    return replace(row, shape=shape, max_prompt=24, max_completion=40, target=2.0)


def measure(row: Headline, plan: Plan, *, sequences: int, sampling: bool) -> Measured:
    """Cap the card, build the model, update, sample a little."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = used_before_this_process()
    budget = int(row.target * GB)
    ballast = leave(budget, before) if device.type == "cuda" else 0
    meter = Meter(device, before + ballast if device.type == "cuda" else Meter.start(device).before)
    context = meter.peak()
    start = time.perf_counter()
    policy = _policy(row, plan, device)
    settings = OptimConfig(kind=row.optim, learning_rate=1e-4)
    optimizer = build_optimizer(policy.named_parameters(), settings)
    state = TrainState(learner=policy, optimizer=optimizer)
    load_ms = _milliseconds(start, device)
    score_ms, update_ms = _train(state, replace(row, rows=sequences), plan, settings, device)
    training = meter.peak()
    allocated = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    sampled, decode_ms, problem = 0, 0.0, ""
    if sampling:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            decode_ms = _sample(row, plan, policy, device)
        except torch.OutOfMemoryError as error:
            problem = f"sampling: {str(error).splitlines()[0]}"
        sampled = meter.peak()
    return Measured(
        name=row.name,
        claimed=row.claimed,
        target=row.target,
        planned_sampling=plan.sampling / GB,
        planned_training=plan.training / GB,
        sampling=sampled / GB,
        training=training / GB,
        allocated=allocated / GB,
        context=context / GB,
        load_ms=load_ms,
        score_ms=score_ms,
        update_ms=update_ms,
        decode_ms=decode_ms,
        sequences=sequences,
        problem=problem,
        tokens_per_microbatch=plan.choice.tokens_per_microbatch,
        checkpointing=plan.choice.checkpointing.value,
        at_once=plan.choice.at_once,
        optim=row.optim.value,
        device=torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        torch=torch.__version__,
    )


def _policy(row: Headline, plan: Plan, device: torch.device) -> Policy:
    config = row.hf_config()
    base = BaseModel(
        model=random_nf4(config, device=device, dtype=torch.bfloat16),
        tokenizer=None,  # type: ignore[arg-type]  # ids in, ids out
        location="",
        dtype=torch.bfloat16,
        stop_ids=frozenset(),
        context_length=row.max_prompt + row.max_completion,
        gradient_checkpointing=plan.choice.checkpointing,
        notes=(),
    )
    return new_policy(base, ModelConfig(), seed=0, workspace_bytes=plan.choice.workspace_bytes)


def _train(
    state: TrainState, row: Headline, plan: Plan, optim: OptimConfig, device: torch.device
) -> tuple[float, float]:
    """Milliseconds of scoring the reference and of one update; the second time if that is short."""
    algorithm = build(
        Objective(GRPOConfig(group_size=row.rows), KLConfig(), RatioConfig(), CorrectionConfig()),
        Setting(group_size=row.rows, max_completion_length=row.max_completion, updates_per_batch=1),
    )
    settings = UpdateSettings(
        optim=optim,
        total_updates=2,
        temperature=1.0,
        tokens_per_microbatch=plan.choice.tokens_per_microbatch,
    )
    shape = (row.rows, row.max_prompt, row.max_completion)
    rollout = full_batch(shape, num_words=row.shape["vocab_size"], device=device)
    score_ms = update_ms = 0.0
    for _ in range(1 if row.rows * (row.max_prompt + row.max_completion) > _LONG else 2):
        start = time.perf_counter()
        scored = score(state.learner, rollout, algorithm, settings)
        score_ms = _milliseconds(start, device)
        start = time.perf_counter()
        state, result = train_step(state, algorithm.prepare(scored), algorithm, settings)
        update_ms = _milliseconds(start, device)
        if result.metrics["skipped_updates"]:
            raise RuntimeError(f"an update of {row.name} was skipped: {result.metrics}")
    return score_ms, update_ms


def _sample(row: Headline, plan: Plan, policy: Policy, device: torch.device) -> float:
    """Milliseconds of a decoding step with full caches."""
    generator = HFGenerator(
        policy.model,
        None,  # type: ignore[arg-type]  # no stop strings
        activate=policy.lora.active,
        stop_token_ids=frozenset(),
        config=HFGeneratorConfig(max_rows=plan.choice.at_once),
    )
    generator.load_adapter(policy.adapter, 0)
    # A long prompt fills the cache at once; its rows share it until they part.
    length = row.max_prompt + row.max_completion - _SAMPLED
    prompt = Prompt(index=0, ids=tuple(3 + i % 900 for i in range(length)), text="")
    start = time.perf_counter()
    generator.generate(
        [prompt],
        num_samples=plan.choice.at_once,
        sampling=SamplingConfig(max_completion_length=_SAMPLED),
        seeds=[list(range(plan.choice.at_once))],
    )
    return _milliseconds(start, device) / _SAMPLED


def _milliseconds(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000.0 * (time.perf_counter() - start)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| work | Unsloth's claim | to reach | planned | measured: sampling | training | error | "
        "update, ms (sequences) | reference, ms | decode step, ms | problem |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        planned = max(row["planned_sampling"], row["planned_training"])
        taken = max(row["sampling"], row["training"])
        lines.append(
            f"| {row['name']} | {row['claimed']:.1f} GB | {row['target']:.1f} GB | "
            f"{planned:.2f} GB | {row['sampling']:.2f} GB | {row['training']:.2f} GB | "
            f"{planned / taken - 1:+.0%} | {row['update_ms']:.0f} ({row['sequences']}) | "
            f"{row['score_ms']:.0f} | {row['decode_ms']:.1f} | {row['problem']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
