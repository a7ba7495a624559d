"""F12: completions that are empty, cut, equal or alone in their group, in a run of a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tiny_run import STOP, tiny_run
from torch import Tensor

from benchmarks.faults.row import Row
from rlkit.algorithms import KLConfig
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.base import AlgorithmConfig
from rlkit.algorithms.online_dpo import OnlineDPOConfig
from rlkit.algorithms.ppo import PPOConfig
from rlkit.algorithms.rloo import RLOOConfig
from rlkit.training.collect import Collector
from rlkit.training.stopping import StopRequest
from rlkit.types import FinishReason, Generator, KLDirection, Prompt, Rollout, SamplingConfig

_A, _B = 0, 1
_LETTERS = 6


class Case(NamedTuple):
    """One kind of completions: what each sample of a group becomes, from what was sampled."""

    change: Callable[[Rollout, int], Rollout]
    group_size: int = 4
    no_gradient: bool = False
    """Whether a group teaches nothing to algorithms that compare its members."""


def _as(*ids: int, cut: bool = False) -> Callable[[Rollout, int], Rollout]:
    finish = FinishReason.length if cut else FinishReason.stop

    def change(rollout: Rollout, _number: int) -> Rollout:
        # Rough logps of a policy that is almost flat over 28 words.
        logps = (-math.log(28),) * len(ids)
        return replace(
            rollout, completion_ids=tuple(ids), sampling_logps=logps, finish_reason=finish
        )

    return change


def _one_odd(odd: Callable[[Rollout, int], Rollout]) -> Callable[[Rollout, int], Rollout]:
    return lambda rollout, number: odd(rollout, number) if number == 0 else rollout


CASES: Mapping[str, Case] = {
    "all end at once": Case(_as(STOP), no_gradient=True),
    "one ends at once": Case(_one_odd(_as(STOP))),
    "all without a token": Case(_as(cut=True), no_gradient=True),
    "one without a token": Case(_one_odd(_as(cut=True))),
    "all cut": Case(_as(*[_A] * _LETTERS, cut=True), no_gradient=True),
    "one cut": Case(_one_odd(_as(*[_B] * _LETTERS, cut=True))),
    "all equal": Case(_as(_A, _B, STOP), no_gradient=True),
    "one sample in a group": Case(lambda rollout, _: rollout, group_size=1),
}
ALGORITHMS: Mapping[str, Callable[[int], AlgorithmConfig]] = {
    "grpo": lambda size: GRPOConfig(group_size=size),
    "rloo": lambda size: RLOOConfig(group_size=size),
    "ppo": lambda size: PPOConfig(group_size=size),
    "online_dpo": lambda size: OnlineDPOConfig(group_size=size),
}


@dataclass(frozen=True)
class _Changed:
    """The generator of a run, whose samples are changed."""

    plain: Generator
    change: Callable[[Rollout, int], Rollout]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample, then change."""
        groups = self.plain.generate(
            prompts, num_samples=num_samples, sampling=sampling, seeds=seeds
        )
        return [[self.change(r, i) for i, r in enumerate(group)] for group in groups]

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Hand the adapter on."""
        self.plain.load_adapter(tensors, version)

    def close(self) -> None:
        """Close the generator."""
        self.plain.close()


def run(count: int, folder: Path) -> Row:
    """Train two steps on each kind of completions, with four algorithms: `count` of the pairs.

    Survived is a run with finite numbers whose first gradient is 0 where nothing can be compared,
    or a group size that the algorithm refuses.
    """
    pairs = [(kind, name) for kind in CASES for name in ALGORITHMS][:count]
    survived, refused, zero, notes = 0, 0, 0, list[str]()
    for number, (kind, name) in enumerate(pairs):
        case = CASES[kind]
        try:
            algorithm = ALGORITHMS[name](case.group_size)
        except ValueError as error:
            refused, survived = refused + 1, survived + (case.group_size == 1)
            notes += [f"{kind}, {name}: {error}"] if case.group_size > 1 else []
            continue
        wrong, is_zero = _train(folder / str(number), algorithm, case, name)
        survived, zero = survived + (not wrong), zero + is_zero
        notes += [f"{kind}, {name}: {wrong}"] if wrong else []
    said = "; ".join(notes[:4]) or "all numbers finite"
    note = (
        f"{len(CASES)} kinds with {len(ALGORITHMS)} algorithms: {zero} gradients are exactly 0, as "
        f"they should, {refused} refused by their group size; {said}"
    )
    return Row("F12 completions", len(pairs), survived, len(pairs) - survived, note)


def _train(folder: Path, algorithm: AlgorithmConfig, case: Case, name: str) -> tuple[str, bool]:
    """Return what went wrong, and whether the first gradient was exactly 0."""
    try:
        # One of pairs has a strength of its own in place of a KL term.
        kl = KLConfig(direction=KLDirection.none, beta=0.0) if name == "online_dpo" else KLConfig()
        trainer, state, tracker = tiny_run(folder, num_steps=2, algorithm=algorithm, kl=kl)
    except ValueError as error:
        return ("" if case.group_size == 1 else str(error)), False
    collector = trainer.collector
    assert isinstance(collector, Collector)
    changed = replace(collector, generator=_Changed(collector.generator, case.change))
    trainer = replace(trainer, collector=changed)
    trainer.fit(state, stop=StopRequest())
    metrics = tracker.steps[0].metrics
    # Quantiles and correlations of nothing are NaN by nature; what the update says must be finite.
    told = {k: v for k, v in metrics.items() if k in ("loss", "grad_norm", "reward", "kl")}
    if bad := [key for key, value in told.items() if not math.isfinite(value)]:
        return f"{', '.join(bad)} not finite", False
    if metrics.get("skipped_updates", 0.0):
        return "the update was skipped", False
    zero = metrics["grad_norm"] == 0.0
    # A critic learns from equal samples, too.
    if case.no_gradient and name != "ppo" and not zero:
        return f"gradient norm {metrics['grad_norm']:.2g}, not 0", False
    return "", zero
