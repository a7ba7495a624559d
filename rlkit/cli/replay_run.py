"""This module does the work of `rlkit replay`: it loads, replays, prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from rlkit.algorithms import AlgorithmConfig, Objective, build
from rlkit.assembly.device import resolve_device
from rlkit.assembly.saved_run import RunOptions, read_options
from rlkit.cli import UsageError
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.models.load import load_model
from rlkit.plan.run import recorded
from rlkit.policy.policy import CRITIC_PREFIX, CriticChoice, Policy, new_policy
from rlkit.tracking.files import encode, write_atomic
from rlkit.training import checkpoint, rollout_files
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.optim import OptimConfig
from rlkit.training.replay import Replayed, cosines, replay
from rlkit.training.rollout_files import SavedRollouts
from rlkit.training.update import UpdateSettings
from rlkit.types import Algorithm, Setting

_PLAIN_WIDTH = 200
_USUAL_TOKENS = 8192
"""Tokens of a micro-batch where a run's folder has no record of its plan."""


class Candidate(NamedTuple):
    """This record pairs an algorithm to replay with the configuration that it was made of."""

    objective: Objective[AlgorithmConfig]
    algorithm: Algorithm
    memory: MemoryConfig
    """Of the preset: some losses must not be split."""


def compare(run_dir: Path, names: Sequence[str], *, step: int | None) -> None:
    """Replay the batch of `step`, None = the newest, with the options `names` of conf/algorithm.

    Prints the tables and writes the JSON file. Raises ValueError with one line, TrackingError when
    the file cannot be written.
    """
    options = read_options(run_dir, key="run_dir")
    step = _choose_step(run_dir, step)
    device = resolve_device(options.device)
    rollouts = rollout_files.load(run_dir, step, device=device)
    candidates = {name: _candidate(name, rollouts) for name in names}
    algorithms = {name: candidate.algorithm for name, candidate in candidates.items()}
    if options.memory.torch_threads:
        torch.set_num_threads(options.memory.torch_threads)
    policy, critic = _load_policy(options, run_dir, step, device, list(algorithms.values()))
    # No gradient depends on the split, except those whose preset forbids one.
    unsplit = any(c.memory.tokens_per_microbatch == 0 for c in candidates.values())
    settings = UpdateSettings(
        optim=OptimConfig(),
        total_updates=1,
        temperature=rollouts.temperature,
        tokens_per_microbatch=0 if unsplit else _bound(options.memory, run_dir),
    )
    results = replay(policy, rollouts.batch, algorithms, settings)
    matrix = cosines([result.gradient for result in results.values()]).tolist()
    _print_tables(run_dir, rollouts, results, matrix, critic)
    objectives = {name: candidate.objective for name, candidate in candidates.items()}
    record = _record(rollouts, objectives, results, matrix, critic)
    file = run_dir / f"replay-step-{step:06d}.json"
    write_atomic(file, (encode(record) + "\n").encode())
    print(f"written to {file}")


def _bound(memory: MemoryConfig, run_dir: Path) -> int:
    """Return the tokens of a micro-batch: the user's bound, or what the run's plan chose."""
    if memory.tokens_per_microbatch is not None:
        return memory.tokens_per_microbatch
    chosen = recorded(run_dir)
    return _USUAL_TOKENS if chosen is None else chosen.tokens_per_microbatch


def _record(
    rollouts: SavedRollouts,
    objectives: Mapping[str, Objective[AlgorithmConfig]],
    results: Mapping[str, Replayed],
    matrix: Sequence[Sequence[float]],
    critic: str,
) -> dict[str, object]:
    """Return what the JSON file holds: the tables, and the configuration behind each line."""
    return {
        "step": rollouts.step,
        "num_rows": len(rollouts.batch),
        "group_size": rollouts.group_size,
        "reward_names": rollouts.reward_names,
        "reward": float(rollouts.batch.rewards.mean()),
        "critic": critic,
        "algorithms": {
            name: {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "num_tokens": result.num_tokens,
                "metrics": result.metrics,
                "cosines": dict(zip(results, row, strict=True)),
                "config": asdict(objectives[name]),
            }
            for (name, result), row in zip(results.items(), matrix, strict=True)
        },
    }


def _choose_step(run_dir: Path, wanted: int | None) -> int:
    steps = rollout_files.saved_steps(run_dir)
    if not steps:
        raise UsageError(f"run_dir must hold saved rollouts, got none in {run_dir / 'rollouts'}")
    if wanted is not None and wanted not in steps:
        listed = ", ".join(map(str, steps))
        raise UsageError(f"step must be one of {listed}, the saved batches, got {wanted}")
    step = steps[-1] if wanted is None else wanted
    if not rollout_files.is_recoverable(run_dir, step):
        raise UsageError(f"step {step} has a saved batch but no checkpoint of its policy")
    return step


def _candidate(name: str, rollouts: SavedRollouts) -> Candidate:
    """Compose the option `name` of conf/algorithm for one update on this batch."""
    register()
    size = rollouts.group_size
    (config,) = preflight([f"algorithm={name}", f"algorithm.group_size={size}"])
    setting = Setting(
        group_size=size,
        max_completion_length=rollouts.max_completion_length,
        updates_per_batch=1,
        microbatched=config.memory.tokens_per_microbatch != 0,
    )
    objective = Objective.of(config)
    try:
        return Candidate(objective, build(objective, setting), config.memory)
    except ValueError as error:
        raise UsageError(f"algorithm={name}: {error}") from error


def _load_policy(
    options: RunOptions,
    run_dir: Path,
    step: int,
    device: torch.device,
    algorithms: Sequence[Algorithm],
) -> tuple[Policy, str]:
    """Return the policy that sampled the batch, and which critic it has."""
    saved: Mapping[str, torch.Tensor] = {}
    if step > 0:
        folder = checkpoint.step_folder(run_dir / "checkpoints", step)
        saved = checkpoint.load(folder, device=device).parameters
    base = load_model(options.model, device=device, say=print, quant=options.memory.quant)
    wanted = any(algorithm.outputs.values for algorithm in algorithms)
    critic = CriticChoice.lora if wanted else CriticChoice.none
    policy = new_policy(base, options.model, seed=options.seed, critic=critic)
    restored = _restore(policy, saved) if step > 0 else False
    if not wanted:
        return policy, "none: no algorithm here uses one"
    return policy, "the checkpoint's" if restored else "fresh (every value 0)"


def _restore(policy: Policy, saved: Mapping[str, torch.Tensor]) -> bool:
    """Put the adapter, and the critic if there is one, into `policy`; True with a critic."""
    with_critic = any(name.startswith(CRITIC_PREFIX) for name in saved)
    leaves = policy.named_parameters() if with_critic else policy.adapter
    adapter = {name for name in saved if not name.startswith(CRITIC_PREFIX)}
    odd = sorted((adapter ^ policy.adapter.keys()) | (leaves.keys() - saved.keys()))
    if odd:
        raise UsageError(f"checkpoint and model differ in parameters: {odd[0]}")
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(saved[name])
    return with_critic


def _print_tables(
    run_dir: Path,
    rollouts: SavedRollouts,
    results: Mapping[str, Replayed],
    matrix: Sequence[Sequence[float]],
    critic: str,
) -> None:
    batch = rollouts.batch
    numbers = Table(title=f"Step {rollouts.step} of {run_dir}")
    numbers.add_column("algorithm")
    for heading in ("loss", "gradient norm", "tokens used"):
        numbers.add_column(heading, justify="right")
    for name, result in results.items():
        values = (f"{result.loss:.6g}", f"{result.grad_norm:.6g}", str(result.num_tokens))
        numbers.add_row(name, *values)
    angles = Table(title="Cosine between the gradients")
    angles.add_column("")
    for name in results:
        angles.add_column(name, justify="right")
    for name, row in zip(results, matrix, strict=True):
        # NaN: a gradient of norm 0 has no direction.
        angles.add_row(name, *("-" if x != x else f"{x:+.4f}" for x in row))
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(numbers)
    sampled = int(batch.completion_mask.sum())
    reward = float(batch.rewards.mean())
    console.print(f"{len(batch)} rows, {sampled} sampled tokens, mean reward {reward:.4g}")
    console.print(f"gradients: of what trains of the policy; critic: {critic}")
    console.print(angles)
