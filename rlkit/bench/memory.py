"""`python -m rlkit.bench.memory`: memory of GRPO with QLoRA on models of real shapes.

Random NF4 weights are made on the device; the plan is made for the row's target, and everything
above the target is taken away first by one plain allocation, so that a run that needs more fails.
What is measured is what the device counts as used by this process, its CUDA context included.
Each row runs in a process of its own. `--tiny` runs small shapes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.bench.random_nf4 import random_nf4
from rlkit.generation import HFGeneratorConfig
from rlkit.generation.hf import HFGenerator
from rlkit.models.config import ModelConfig
from rlkit.models.load import BaseModel
from rlkit.optim import OptimConfig, build_optimizer
from rlkit.plan.choose import CONTEXT_BYTES, GB, Plan, make_plan
from rlkit.plan.device import Meter
from rlkit.plan.headline import ROWS, Headline
from rlkit.plan.rehearse import full_batch
from rlkit.policy import Policy, new_policy
from rlkit.types import Prompt, SamplingConfig, Setting
from rlkit.update import TrainState, UpdateSettings, score, train_step

_STEPS = 2
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
    """Peak of the allocator during the updates, for comparison with figures of that kind."""
    context: float
    """What the device counted once the context existed, before any tensor."""
    load_ms: float
    score_ms: float
    update_ms: float
    decode_ms: float
    """Of one token of all rows, with full caches."""
    tokens_per_microbatch: int
    checkpointing: str
    at_once: int
    optim: str
    device: str
    torch: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows asked for, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m rlkit.bench.memory", description=__doc__)
    parser.add_argument("--rows", default="1.5B,8B,14B,70B", help="parts of names of rows")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--no-sampling", action="store_true", help="the updates alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        row = next(row for row in ROWS if row.name == options.one)
        measured = measure(tiny(row) if options.tiny else row, sampling=not options.no_sampling)
        options.json.write_text(json.dumps(asdict(measured)))
        return 0
    wanted = [r for r in ROWS if any(part in r.name for part in options.rows.split(","))]
    results = [_in_a_process(row, options) for row in wanted]
    print(table([r for r in results if r is not None]))
    if options.json is not None:
        command = " ".join(["python -m rlkit.bench.memory", *(arguments or sys.argv[1:])])
        found = {"command": command, "rows": results, "python": platform.python_version()}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(results) else 1


def _in_a_process(row: Headline, options: argparse.Namespace) -> dict[str, Any] | None:
    flags = [
        f for f, on in (("--tiny", options.tiny), ("--no-sampling", options.no_sampling)) if on
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", "rlkit.bench.memory", "--one", row.name]
        done = subprocess.run([*command, *flags, "--json", str(path)], check=False)
        if done.returncode != 0:
            print(f"{row.name}: failed, see above")
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found


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


def measure(row: Headline, *, sampling: bool) -> Measured:
    """Plan, cap, build, sample a little, update twice."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = _used_before_this_process()
    budget = int(row.target * GB)
    work = replace(row.work(), on_cuda=device.type == "cuda")
    plan = make_plan(work, row.request(), budget=budget)
    ballast = _leave(budget, before) if device.type == "cuda" else 0
    meter = Meter(device, before + ballast if device.type == "cuda" else Meter.start(device).before)
    context = meter.peak()
    start = time.perf_counter()
    policy = _policy(row, plan, device)
    settings = OptimConfig(kind=row.optim, learning_rate=1e-4)
    optimizer = build_optimizer(policy.named_parameters(), settings)
    state = TrainState(learner=policy, optimizer=optimizer)
    load_ms = _milliseconds(start, device)
    score_ms, update_ms = _train(state, row, plan, settings, device)
    training = meter.peak()
    allocated = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    sampled, decode_ms = (0, 0.0)
    if sampling:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        decode_ms = _sample(row, plan, policy, device)
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
    """Milliseconds of scoring the reference, and of one update, the second time."""
    algorithm = build(
        Objective(GRPOConfig(group_size=row.rows), KLConfig(), RatioConfig(), CorrectionConfig()),
        Setting(group_size=row.rows, max_completion_length=row.max_completion, updates_per_batch=1),
    )
    settings = UpdateSettings(
        optim=optim,
        total_updates=_STEPS,
        temperature=1.0,
        tokens_per_microbatch=plan.choice.tokens_per_microbatch,
    )
    shape = (row.rows, row.max_prompt, row.max_completion)
    rollout = full_batch(shape, num_words=row.shape["vocab_size"], device=device)
    rollout = replace(rollout, prompt_ids=rollout.prompt_ids[:1].expand(row.rows, -1).contiguous())
    score_ms = update_ms = 0.0
    for _ in range(_STEPS):
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
    ids = tuple(range(3, 3 + length)) if length < 900 else tuple(3 + i % 900 for i in range(length))
    prompt = Prompt(index=0, ids=ids, text="")
    start = time.perf_counter()
    generator.generate(
        [prompt],
        num_samples=plan.choice.at_once,
        sampling=SamplingConfig(max_completion_length=_SAMPLED),
        seeds=[list(range(plan.choice.at_once))],
    )
    return _milliseconds(start, device) / _SAMPLED


def _leave(budget: int, before: int) -> int:
    """Take everything of the card but `budget` bytes, outside of torch; returns what was taken."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    _, total = torch.cuda.mem_get_info()
    size = total - before - budget
    if size <= 0:
        return 0
    pointer = ctypes.c_uint64()
    error = ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
    if error != 0:
        raise RuntimeError(f"could not take {size / GB:.2f} GB of the card: CUDA error {error}")
    return size


def _used_before_this_process() -> int:
    """What others hold of the card; asked of the driver before this process has a context."""
    if not torch.cuda.is_available():
        return 0
    if find_spec("pynvml") is None:
        free, total = torch.cuda.mem_get_info()
        return max(0, total - free - CONTEXT_BYTES)
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    # Version 2 leaves out what the driver keeps for itself, as CUDA's own count does.
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)


def _milliseconds(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000.0 * (time.perf_counter() - start)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| work | Unsloth's claim | to reach | planned | measured: sampling | training | error | "
        "update, ms | reference, ms | decode step, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        planned = max(row["planned_sampling"], row["planned_training"])
        taken = max(row["sampling"], row["training"])
        lines.append(
            f"| {row['name']} | {row['claimed']:.1f} GB | {row['target']:.1f} GB | "
            f"{planned:.2f} GB | {row['sampling']:.2f} GB | {row['training']:.2f} GB | "
            f"{planned / taken - 1:+.0%} | {row['update_ms']:.0f} | {row['score_ms']:.0f} | "
            f"{row['decode_ms']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
