"""Whole runs of a tiny model as one rank of several, and what the ranks and their tests compare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_run import PAD, LetterReward, LetterScores, flat, letter_prompts, tiny_run

from rlkit.algorithms import KLConfig, RatioConfig
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.kl import KLPlacement
from rlkit.algorithms.objective.ratio import RatioLevel
from rlkit.algorithms.online_dpo import OnlineDPOConfig
from rlkit.algorithms.rloo import RLOOConfig
from rlkit.models.config import TuningKind
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import Policy
from rlkit.ranks import ALONE, Ranks
from rlkit.ranks.base import Alone
from rlkit.ranks.bits import as_integers
from rlkit.training import checkpoint
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collector
from rlkit.training.optim import OptimConfig
from rlkit.training.progress import restore
from rlkit.training.score import score
from rlkit.training.sharded import Sharded
from rlkit.training.stopping import StopRequest
from rlkit.training.update import TrainState, accumulate
from rlkit.types import (
    Completion,
    Generator,
    KLDirection,
    Prompt,
    PromptRequest,
    Rollout,
    SamplingConfig,
)

CPU = torch.device("cpu")

CASES: Mapping[str, Mapping[str, Any]] = {
    "sequence_mean": {"algorithm": GRPOConfig(group_size=4, aggregation=Aggregation.sequence_mean)},
    "token_mean": {"algorithm": GRPOConfig(group_size=4, aggregation=Aggregation.token_mean)},
    "constant": {"algorithm": GRPOConfig(group_size=4, aggregation=Aggregation.constant_length)},
    "sequence_sum": {"algorithm": GRPOConfig(group_size=4, aggregation=Aggregation.sequence_sum)},
    "sequence_ratio": {
        "algorithm": GRPOConfig(group_size=4, aggregation=Aggregation.sequence_mean),
        "ratio": RatioConfig(level=RatioLevel.sequence),
        "optim": OptimConfig(learning_rate=0.002, inner_epochs=2),
    },
    "kl_in_reward": {
        "algorithm": RLOOConfig(group_size=4),
        "kl": KLConfig(beta=0.1, placement=KLPlacement.reward),
    },
    "pairs": {
        "algorithm": OnlineDPOConfig(group_size=4),
        "kl": KLConfig(direction=KLDirection.none),
    },
    "resampled": {"resample": True},
    "one_at_once": {"at_once": 1},
    "minibatches": {"optim": OptimConfig(learning_rate=0.002, minibatches=2, inner_epochs=2)},
}


@dataclass(frozen=True)
class Part(Alone):
    """One of several ranks in this process: it keeps its share, and adds nobody else's."""

    def is_mine(self, index: int) -> bool:
        return index % self.size == self.rank


def gradient(case: str, ranks: Ranks, *, computes: Ranks | None = None) -> dict[str, Any]:
    """The gradient and the metrics of a first update, as `ranks` see them.

    The batch and its columns are those of `ranks`; `computes` then accumulates its share of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, state, _ = tiny_run(
            Path(folder), tokens_per_microbatch=40, ranks=ranks, **CASES[case]
        )
        trainer.generator.load_adapter(state.learner.adapter, 0)
        collection = trainer.collector.collect(0, policy_version=0, clock=StepClock(CPU))
        batch = collate(collection.groups, reward_weights=(1.0,), pad_token_id=PAD, device=CPU)
        algorithm = trainer.algorithm(0)
        prepared = algorithm.prepare(score(state.learner, batch, algorithm, trainer.settings))
        settings = trainer.settings._replace(ranks=computes or ranks)
        metrics, logps = accumulate(state.learner, prepared, algorithm, settings)
    leaves = state.learner.named_parameters()
    grads = {k: v.grad if v.grad is not None else torch.zeros_like(v) for k, v in leaves.items()}
    return {
        "gradient": flat(grads).tolist(),
        "logps": logps.flatten().tolist(),
        "metrics": metrics,
        "tokens": batch.completion_ids.flatten().tolist(),
        "rewards": batch.rewards.tolist(),
    }


def gradients(ranks: Ranks) -> dict[str, Any]:
    """`gradient` of every case."""
    return {case: gradient(case, ranks) for case in CASES}


def run(case: str, ranks: Ranks, num_steps: int = 4) -> dict[str, Any]:
    """The adapter, tokens' rewards and evaluations of a run."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, state, tracker = tiny_run(
            Path(folder),
            num_steps=num_steps,
            tokens_per_microbatch=40,
            ranks=ranks,
            **({"optim": OptimConfig(learning_rate=0.002)} | dict(CASES[case])),
        )
        state = trainer.fit(state, stop=StopRequest())
    return {
        "adapter": flat(state.learner.adapter).tolist(),
        "rewards": [record.metrics["reward"] for record in tracker.steps],
        "evaluations": [record.values for record in tracker.evaluations],
    }


def runs(ranks: Ranks) -> dict[str, Any]:
    """`run` of every case."""
    return {case: run(case, ranks) for case in CASES}


def slow_second(ranks: Ranks) -> dict[str, float]:
    """The costs of messages when the second rank is 0.4 s late."""
    ranks.together(lambda: None)
    ranks.costs()
    time.sleep(0.4 * ranks.rank)
    ranks.add([torch.ones(3)])
    ranks.add_numbers({"a": 1.0})
    return ranks.costs()


def owned(ranks: Ranks) -> dict[str, Any]:
    """Sums that reach owners, and bits that come from owners, of three tensors of ranks 1, 0, 1."""
    owners = [1, 0, 1]
    sums = [torch.full((2, 3), 1.0 + ranks.rank), torch.full((4,), 10.0 * (1 + ranks.rank))]
    sums.append(torch.arange(6.0).reshape(3, 2).t() * (1 + ranks.rank))  # not contiguous
    ranks.add_at(owners, sums)
    # NaNs of bfloat16 with a payload, -0.0 and a number, which only bits tell apart.
    bits = torch.tensor([0x7FC1, 0x7F81, -0x8000, 0x3F80 + ranks.rank], dtype=torch.int16)
    halves = bits.view(torch.bfloat16)
    copied = [halves.clone(), torch.arange(3) + 10 * ranks.rank, torch.full((2,), 5.0 + ranks.rank)]
    ranks.copy_from(owners, copied)
    return {
        "sums": [s.tolist() for s, owner in zip(sums, owners, strict=True) if owner == ranks.rank],
        "copied": [as_integers(tensor).tolist() for tensor in copied],
    }


def spread(ranks: Ranks) -> dict[str, Any]:
    """The ends of two runs of all weights: moments on each rank, and moments spread over all.

    Of each dtype: the hashes of all tensors of the last checkpoint, the entries of the moments and
    of the masters that this rank keeps, whether a run that was stopped half-way ends with the same
    checkpoint, and whether the samples are the same.
    """
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        whole = _full_run(ranks, ALONE, dtype, stop_at=None)
        parts = _full_run(ranks, ranks, dtype, stop_at=None)
        resumed = _full_run(ranks, ranks, dtype, stop_at=2)
        found[str(dtype)] = {
            "same": parts.hashes == whole.hashes,
            "norms": parts.norms,
            "whole_norms": whole.norms,
            "same_model": parts.model == whole.model,
            "resumed": resumed.hashes == parts.hashes and resumed.model == parts.model,
            "tensors": len(whole.hashes),
            "entries": whole.moments,
            "own": parts.moments,
            "masters": parts.masters,
        }
    return found


class FullRun(NamedTuple):
    """What a run of all weights leaves behind on one rank."""

    hashes: dict[str, str]
    """Of what the first rank saved at the end, by tensor."""
    norms: list[float]
    """Of the gradients, step by step."""
    model: str
    """Hash of the weights that the model computes with on this rank."""
    moments: int
    """Entries of the first moments on this rank."""
    masters: int
    """Entries of masters that have memory on this rank, beside the model's own parameters."""


def _full_run(
    ranks: Ranks, spread_over: Ranks, dtype: torch.dtype, *, stop_at: int | None
) -> FullRun:
    with tempfile.TemporaryDirectory() as own:
        folder = Path(ranks.share(own.encode)[0].decode())

        def run_to(num_steps: int) -> tuple[TrainState, list[float]]:
            trainer, state, tracker = tiny_run(
                folder,
                num_steps=num_steps,
                tokens_per_microbatch=40,
                ranks=ranks,
                spread_over=spread_over,
                tuning=TuningKind.full,
                dtype=dtype,
                optim=OptimConfig(learning_rate=0.01, max_grad_norm=0.05, weight_decay=0.01),
            )
            saved, _ = checkpoint.load_newest(folder / "checkpoints", device=CPU)
            state = restore(state, saved) if saved else state
            ranks.together(lambda: None)  # nobody writes before all have looked
            state = trainer.fit(state, stop=StopRequest())
            return state, [record.metrics["grad_norm"] for record in tracker.steps]

        if stop_at:
            run_to(stop_at)
        state, norms = run_to(4)
        optimizer = state.optimizer
        inner = optimizer.own if isinstance(optimizer, Sharded) else optimizer
        saved, _ = checkpoint.load_newest(folder / "checkpoints", device=CPU)
        assert saved is not None and saved.progress.step == 4
        ranks.together(lambda: None)  # the folder goes with its owner
    tensors = {**saved.parameters, **saved.moments}
    hashes = {name: sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    policy = state.learner
    assert isinstance(policy, Policy) and isinstance(policy.tuning, FullWeights)
    masters = policy.tuning.masters
    computed = policy.tuning.copies(masters)
    bits = b"".join(as_integers(t.contiguous()).numpy().tobytes() for t in computed.values())
    return FullRun(
        hashes,
        norms,
        sha256(bits).hexdigest(),
        moments=sum(of_leaf["exp_avg"].numel() for of_leaf in inner.state.values()),
        masters=sum(
            master.numel()
            for name, master in masters.items()
            if master.untyped_storage().nbytes() == master.nbytes
            and master.data_ptr() != computed[name].data_ptr()
        ),
    )


class SlowReward(LetterReward):
    """The reward of a rank that falls behind, and the prompts that it saw."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, 0

    def score(self, groups: Sequence[Sequence[Completion]]) -> LetterScores:
        time.sleep(self.seconds)
        self.seen += len(groups)
        return super().score(groups)


class OneByOne:
    """A generator that holds one prompt, takes the next when it has room, and may be slow."""

    def __init__(self, inner: Generator, seconds: float) -> None:
        self.inner, self.seconds, self.calls = inner, seconds, 0

    def prompts_at_once(self, num_samples: int) -> int:
        return 1

    def generate_from(
        self, requests: Iterator[PromptRequest], *, num_samples: int, sampling: SamplingConfig
    ) -> list[list[Rollout]]:
        self.calls += 1
        found = []
        for prompt, seeds in requests:
            time.sleep(self.seconds)
            found += self.generate(
                [prompt], num_samples=num_samples, sampling=sampling, seeds=[seeds]
            )
        return found

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        return self.inner.generate(prompts, num_samples=num_samples, sampling=sampling, seeds=seeds)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        self.inner.load_adapter(tensors, version)

    def close(self) -> None:
        self.inner.close()


def uneven(ranks: Ranks, how: str = "calls") -> dict[str, Any]:
    """Twelve prompts, one at once, where the second rank takes half a second more for each.

    `how`: it scores slowly after each of its calls, or it samples slowly in one call that refills.
    """
    slow = 0.5 * ranks.rank

    def prompts(*, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        return [p for n in range(4) for p in letter_prompts(step=n, attempt=attempt)]

    with tempfile.TemporaryDirectory() as folder:
        trainer, state, _ = tiny_run(Path(folder), ranks=ranks, at_once=1)
        rewards = SlowReward(slow if how == "calls" else 0.0)
        assert isinstance(trainer.collector, Collector)
        collector = replace(trainer.collector, prompts=prompts, rewards=rewards)
        refills = OneByOne(collector.generator, slow)
        if how == "refills":
            collector = replace(collector, generator=refills)
        trainer.generator.load_adapter(state.learner.adapter, 0)
        found = collector.collect(0, policy_version=0, clock=StepClock(CPU))
    samples = [sample for group in found.groups for sample in group]
    return {
        "tokens": [list(sample.rollout.completion_ids) for sample in samples],
        "prompts": [sample.rollout.prompt.index for sample in samples],
        "rewards": [sample.reward for sample in samples],
        "sampled": found.counts["rollouts/sampled"],
        "seen": rewards.seen,
        "calls": refills.calls,
    }
