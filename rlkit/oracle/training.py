"""This module trains on the tree: every algorithm learns, from samples, in a second.

`python -m rlkit.oracle.training` prints the table of `docs/algorithms.md`. The loop is the
trainer's in miniature: sample groups, `prepare`, one or several updates on `loss`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.algorithms import AlgorithmConfig, Objective, build
from rlkit.oracle import targets
from rlkit.oracle.compose import composed
from rlkit.oracle.expectation import World, rollout_of
from rlkit.oracle.measure import options
from rlkit.oracle.tree import (
    entropy_of,
    enumerate_tree,
    full_kl_of,
    logps_of,
    probabilities,
    tied,
    waves,
)
from rlkit.types import KLDirection, OutputSpec, PolicyOutput, Setting

NUM_GROUPS = 4


class Result(NamedTuple):
    """These are exact numbers of the policy after training."""

    reward: float
    """E[R]."""
    kl: float
    """KL(policy || reference) of whole completions, nats."""


def task() -> World:
    """Return 40 completions of up to 3 of 4 words, reward 0 or 1; the reference scores 0.131."""
    tree = enumerate_tree(vocabulary=4, max_length=3)
    model = tied(tree, hidden=6, features=5)
    theta = waves(model.num_parameters, phase=0.1, scale=0.9)
    table = model.table(theta)
    rewards = (waves(len(tree), phase=3.0, scale=1.0) > 0.8).to(torch.float64)
    return World(tree, model, theta, table, table, rewards)


def outputs(
    w: World, theta: Tensor, critic: Tensor, sequence: Tensor, spec: OutputSpec
) -> PolicyOutput:
    """Return the forward pass of a policy and a tabular critic on completions.

    Args:
        w: The world, with its reference.
        theta: (d,) parameters of the policy.
        critic: (states,) values of the critic.
        sequence: (rows,) indices of the completions.
        spec: The outputs that the algorithm asks for.

    Returns:
        Float64 outputs of every row.
    """
    table, full_kl = w.model.table(theta), None
    if spec.full_kl is not None:
        reverse = spec.full_kl.direction is KLDirection.reverse
        pair = (table, w.ref_table) if reverse else (w.ref_table, table)
        full_kl = full_kl_of(w.tree, *pair)[sequence]
    values = critic[w.tree.states[sequence]] if spec.values else None
    return PolicyOutput(
        logps_of(w.tree, table)[sequence], entropy_of(w.tree, table)[sequence], values, full_kl
    )


def train(
    objective: Objective[AlgorithmConfig], *, seed: int, steps: int, updates: int = 1
) -> Result:
    """Train from the reference with Adam (learning rate 0.03) on `NUM_GROUPS` groups a step.

    Args:
        objective: The algorithm and its axes.
        seed: The seed of the samples.
        steps: Rollout batches, >= 0.
        updates: Optimiser updates on each batch, >= 1.

    Returns:
        The expected reward and the KL of the final policy, exactly.
    """
    w, group_size = task(), objective.algorithm.group_size
    algorithm = build(objective, Setting(group_size, 3, updates, microbatched=False))
    generator = torch.Generator().manual_seed(seed)
    theta = w.theta.clone().requires_grad_()
    critic = torch.zeros(len(w.tree.prefixes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta, critic], lr=0.03)
    for _ in range(steps):
        with torch.no_grad():
            now = w._replace(behaviour=w.model.table(theta))
            chances = probabilities(w.tree, now.behaviour)
            drawn = chances.multinomial(NUM_GROUPS * group_size, True, generator=generator)
            rollout = rollout_of(now, drawn.view(NUM_GROUPS, group_size), critic=critic)
            batch = algorithm.prepare(rollout)
        for _ in range(updates):
            sequence = batch.rollout.prompt_ids[:, 0]
            loss = algorithm.loss(outputs(w, theta, critic, sequence, algorithm.outputs), batch)
            optimizer.zero_grad()
            if loss.loss.requires_grad:
                loss.loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    final = w.model.table(theta.detach())
    return Result(
        float(targets.expected_reward(w)(final)), float(targets.reverse_sequence(w)(final))
    )


def summary(results: Sequence[Result]) -> tuple[float, float, float]:
    """Return the mean reward, its standard error over seeds, mean KL."""
    rewards = [r.reward for r in results]
    error = statistics.stdev(rewards) / len(rewards) ** 0.5
    return statistics.mean(rewards), error, statistics.mean(r.kl for r in results)


def row(label: str, overrides: Sequence[str], *, updates: int, seeds: int, steps: int) -> str:
    """Return one line of the table.

    Args:
        label: The name in the first column.
        overrides: Overrides of the configuration, as on the command line.
        updates: Optimiser updates on each batch, >= 1.
        seeds: The number of seeds, >= 2.
        steps: Rollout batches of each.

    Returns:
        A row of Markdown: the reward with its standard error, and the KL.
    """
    objective = composed(*overrides)
    results = [train(objective, seed=s, steps=steps, updates=updates) for s in range(seeds)]
    reward, error, kl = summary(results)
    return f"| {label} | {updates} | {reward:.3f} ± {error:.3f} | {kl:.3f} |"


def main() -> None:
    """Print the two tables of `docs/algorithms.md`."""
    head = ["| switch | updates | E[R] | KL to the reference |", "| --- | --- | --- | --- |"]
    start = float(targets.expected_reward(task())(task().table))
    lines = [*head, f"| (reference) | | {start:.3f} | 0 |"]
    for name in options("algorithm"):
        for updates in (1, 4):
            overrides = [f"algorithm={name}"]
            lines.append(row(f"`algorithm={name}`", overrides, updates=updates, seeds=8, steps=60))
    lines += ["", *head]
    for beta in (0.04, 0.4, 2.0):
        for label, changes in SEED_CURVES.items():
            overrides = [*changes, f"kl.beta={beta}"]
            name = f"{label}, beta {beta}"
            lines.append(row(name, overrides, updates=1, seeds=8, steps=60))
    print("\n".join(lines))


SEED_CURVES: Mapping[str, tuple[str, ...]] = {
    "1 `kl=reverse_k3` (reference curve)": ("algorithm=unsloth_2025",),
    "2 `ratio=no_detach`": ("algorithm=unsloth_2025", "ratio=no_detach"),
    "3 `kl=unsloth_full_reverse`": ("algorithm=unsloth_2025", "kl=unsloth_full_reverse"),
    "4 `kl=unsloth_forward`": ("algorithm=unsloth_2025", "kl=unsloth_forward"),
    "`kl=reverse_exact`": ("algorithm=unsloth_2025", "kl=reverse_exact"),
    "`kl=forward_exact`": ("algorithm=unsloth_2025", "kl=forward_exact"),
    "`kl=reverse_k2`": ("algorithm=unsloth_2025", "kl=reverse_k2"),
    "`kl=reverse_k1`": ("algorithm=unsloth_2025", "kl=reverse_k1"),
    "`kl=reverse_k1_reward`": ("algorithm=unsloth_2025", "kl=reverse_k1_reward"),
}


if __name__ == "__main__":
    main()
