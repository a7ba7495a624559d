"""Gradients and runs of a tiny model of which each rank has a part of every layer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rank_runs import CASES, CPU
from tiny_run import PAD, flat, letter_prompts, tiny_run
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from rlkit.models.config import Checkpointing
from rlkit.policy.policy import Policy
from rlkit.ranks import ALONE, Ranks
from rlkit.ranks.base import Alone
from rlkit.ranks.mesh import mesh_of
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collector
from rlkit.training.optim import OptimConfig
from rlkit.training.score import score
from rlkit.training.stopping import StopRequest
from rlkit.training.together import together
from rlkit.training.update import accumulate
from rlkit.types import Generator, Prompt, Rollout, SamplingConfig

CHOSEN = ("token_mean", "pairs", "kl_in_reward")


def gradients(ranks: Ranks) -> dict[str, Any]:
    """Gradient and log-probs of a first update of each case, whole on each rank and sharded."""
    found: dict[str, Any] = {}
    for name in ("whole", "sharded"):
        _step_together(ranks, name == "sharded")
        for case in CHOSEN:
            for mode in (Checkpointing.off, Checkpointing.on):
                found[f"{name} {case} {mode.value}"] = _gradient(ranks, CASES[case], mode)
    return found


def runs(ranks: Ranks) -> dict[str, Any]:
    """Adapter and rewards of four steps, whole on each rank and sharded."""
    found: dict[str, Any] = {}
    for name in ("whole", "sharded"):
        _step_together(ranks, name == "sharded")
        with tempfile.TemporaryDirectory() as folder:
            trainer, state, tracker = tiny_run(
                Path(folder),
                tokens_per_microbatch=40,
                ranks=ranks,
                optim=OptimConfig(learning_rate=0.002),
            )
            state = trainer.fit(state, stop=StopRequest())
        found[name] = {
            "adapter": flat(state.learner.adapter).tolist(),
            "rewards": [record.metrics["reward"] for record in tracker.steps],
            "evaluations": [record.values for record in tracker.evaluations],
            "kl": [record.metrics.get("kl") for record in tracker.evaluations],
        }
    return found


@dataclass(frozen=True)
class Single(Alone):
    """One rank whose layers are still gathered and dropped, to try torch's code on one card."""

    in_step: bool = True

    def mesh(self) -> DeviceMesh:
        device = torch.device("cuda", torch.cuda.current_device())
        return mesh_of(HashStore(), rank=0, size=1, device=device)


def on_card(dtype: torch.dtype, mode: Checkpointing) -> tuple[list[Any], list[Any]]:
    """The gradients of one process on a card, of a whole model and of a sharded one."""
    device = torch.device("cuda", torch.cuda.current_device())
    options = {**CASES["kl_in_reward"], "dtype": dtype, "device": device}
    whole, sharded = (
        [_gradient(ranks, options, mode)[name] for name in ("gradient", "tokens")]
        for ranks in (ALONE, Single())
    )
    return whole, sharded


class Counting:
    """A generator that notes how many prompts it is asked for."""

    def __init__(self, inner: Generator) -> None:
        self.inner, self.asked = inner, list[int]()

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        self.asked.append(len(prompts))
        return self.inner.generate(prompts, num_samples=num_samples, sampling=sampling, seeds=seeds)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        self.inner.load_adapter(tensors, version)

    def close(self) -> None:
        self.inner.close()


def teams(ranks: Ranks) -> dict[str, Any]:
    """What a step collects where two neighbours sample together, then a call of all for the same.

    `asked`: prompts of the generator's calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, state, _ = tiny_run(Path(folder), ranks=ranks)
        assert isinstance(trainer.collector, Collector)
        counting = Counting(trainer.collector.generator)
        generator = together(counting, ranks, size=min(2, ranks.size))
        generator.load_adapter(state.learner.adapter, 0)
        collector = replace(trainer.collector, generator=generator)
        found = collector.collect(0, policy_version=0, clock=StepClock(CPU))
        prompts, seeds = letter_prompts(step=1, attempt=0), [[1], [2], [3]]
        sampling = SamplingConfig(max_completion_length=4)
        again = generator.generate(prompts, num_samples=1, sampling=sampling, seeds=seeds)
    samples = [sample for group in found.groups for sample in group]
    return {
        "tokens": [list(sample.rollout.completion_ids) for sample in samples],
        "prompts": [sample.rollout.prompt.text for sample in samples],
        "rewards": [sample.reward for sample in samples],
        "again": [list(row.completion_ids) for group in again for row in group],
        "asked": counting.asked,
    }


def alone(case: str) -> dict[str, Any]:
    """The gradient of one process."""
    return _gradient(ALONE, CASES[case], Checkpointing.off)


def _step_together(ranks: Ranks, in_step: bool) -> None:
    ranks.in_step = in_step  # type: ignore[misc]  # as the run's options would have it


def _gradient(ranks: Ranks, case: Mapping[str, Any], mode: Checkpointing) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, state, _ = tiny_run(Path(folder), tokens_per_microbatch=40, ranks=ranks, **case)
        learner, device = state.learner, case.get("device", CPU)
        assert isinstance(learner, Policy)
        learner = replace(learner, gradient_checkpointing=mode)
        trainer.generator.load_adapter(learner.adapter, 0)
        collection = trainer.collector.collect(0, policy_version=0, clock=StepClock(device))
        groups = collection.groups
        batch = collate(groups, reward_weights=(1.0,), pad_token_id=PAD, device=device)
        algorithm = trainer.algorithm(0)
        prepared = algorithm.prepare(score(learner, batch, algorithm, trainer.settings))
        metrics, logps = accumulate(learner, prepared, algorithm, trainer.settings)
    leaves = learner.named_parameters()
    grads = {k: v.grad if v.grad is not None else torch.zeros_like(v) for k, v in leaves.items()}
    layers = [p for p in learner.model.parameters() if isinstance(p, DTensor)]
    return {
        "gradient": flat(grads).tolist(),
        "logps": logps.flatten().tolist(),
        "metrics": metrics,
        "tokens": batch.completion_ids.flatten().tolist(),
        "own": sum(p.to_local().numel() for p in layers),
        "all": sum(p.numel() for p in layers),
    }
