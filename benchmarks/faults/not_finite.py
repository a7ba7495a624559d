"""F6: NaN and infinity in logits, loss, gradient and reward: the update is skipped, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny_run import LetterScores, tiny_run
from torch import Tensor

from benchmarks.faults.row import Row
from rlkit.training.collect import Collector
from rlkit.training.optim import OptimConfig, state_tensors
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import NonFiniteGradients, TrainState
from rlkit.types import Algorithm, Completion, LossOutput, PolicyOutput, TrainBatch

_STEPS, _AT, _IN_A_ROW = 4, 2, 3


@dataclass(frozen=True)
class _Case:
    name: str
    value: float
    place: str
    """logps, loss, gradient or reward."""
    everywhere: bool = True
    """Whether all rows are hit, or one."""


CASES = [
    _Case(f"{value} in {place}{'' if everywhere else ' of one sample'}", value, place, everywhere)
    for value in (math.nan, math.inf)
    for place, everywhere in (
        *(("logps", True), ("logps", False), ("loss", True), ("gradient", True)),
        *(("gradient", False), ("reward", True), ("reward", False)),
    )
]


def run(count: int, folder: Path) -> Row:
    """Inject `count` of these in the third of four steps, and some of them in every step.

    Survived is a step after which parameters and moments are what they were before it, bit for bit,
    that is counted, and that the next step leaves behind. A step with a reward of one sample
    missing goes on without that sample. A run that meets it in every step must end by itself.
    """
    chosen = CASES[:count]
    survived, notes = 0, list[str]()
    for number, case in enumerate(chosen):
        wrong = _once(folder / str(number), case) or _always(folder / f"{number}_always", case)
        survived += not wrong
        notes += [f"{case.name}: {wrong}"] if wrong else []
    said = (
        "; ".join(notes[:3]) or "parameters and moments bitwise unchanged, counted, ends by itself"
    )
    return Row("F6 NaN and infinity", len(chosen), survived, len(chosen) - survived, said)


def _once(folder: Path, case: _Case) -> str:
    snapshots: list[dict[str, Tensor]] = []
    trainer, state, tracker = tiny_run(folder, num_steps=_STEPS)
    trainer = _faulty(trainer, state, case, lambda: len(tracker.steps) == _AT)
    step = tracker.step

    def look(record: object) -> None:
        snapshots.append(_copy(state))
        step(record)  # type: ignore[arg-type]

    tracker.step = look  # type: ignore[method-assign]
    trainer.fit(state, stop=StopRequest())
    same = _equal(snapshots[_AT - 1], snapshots[_AT])
    moved = not _equal(snapshots[_AT], snapshots[_AT + 1])
    skipped = tracker.steps[_AT].metrics["skipped_updates"]
    if case.place == "reward" and not case.everywhere:
        lost = tracker.steps[_AT].metrics["rollouts/without_reward"]
        return "" if not same and lost == 1.0 else f"{lost} samples without a reward"
    if not same:
        return "weights or moments changed"
    return "" if moved and skipped == 1.0 else f"skipped {skipped}, goes on: {moved}"


def _always(folder: Path, case: _Case) -> str:
    """Tell why a run that meets it in every step did not end by itself."""
    if case.place == "reward":  # ended by stop.no_reward_steps, which tests/e2e/ asks for
        return ""
    optim = OptimConfig(learning_rate=0.02, max_skipped_updates=_IN_A_ROW)
    trainer, state, tracker = tiny_run(folder, num_steps=6, optim=optim)
    trainer = _faulty(trainer, state, case, lambda: True)
    try:
        trainer.fit(state, stop=StopRequest())
    except NonFiniteGradients:
        ended = len(tracker.steps) == _IN_A_ROW - 1
        return "" if ended else f"ended after {len(tracker.steps)} steps"
    return "did not end by itself"


def _faulty(trainer: Trainer, state: TrainState, case: _Case, now: Callable[[], bool]) -> Trainer:
    """Return `trainer` with the fault in it, while `now()` says so."""
    if case.place == "reward":
        collector = trainer.collector
        assert isinstance(collector, Collector)
        rewards = _Rewards(collector.rewards, case, now)
        return replace(trainer, collector=replace(collector, rewards=rewards))
    if case.place == "gradient":
        leaves = list(state.learner.named_parameters().values())
        for leaf in leaves if case.everywhere else leaves[:1]:
            leaf.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: torch.full_like(gradient, case.value) if now() else gradient
            )
        return trainer

    def algorithm(step: int) -> Algorithm:
        plain = trainer.algorithm(step)

        def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
            if not now():
                return plain.loss(out, batch)
            if case.place == "loss":  # of finite gradients
                value, metrics = plain.loss(out, batch)
                return LossOutput(value + torch.tensor(case.value), metrics)
            rows = torch.ones_like(out.logps[:, :1]) if case.everywhere else _first(out.logps)
            return plain.loss(out._replace(logps=out.logps + _bad(case.value, rows)), batch)

        return plain._replace(loss=loss)

    return replace(trainer, algorithm=algorithm)


def _first(logps: Tensor) -> Tensor:
    rows = torch.zeros_like(logps[:, :1])
    rows[0] = 1.0
    return rows


def _bad(value: float, rows: Tensor) -> Tensor:
    """Return `value` where a row is hit and 0 elsewhere, so that 0 times infinity is not asked."""
    return torch.where(rows > 0, torch.full_like(rows, value), torch.zeros_like(rows))


@dataclass(frozen=True)
class _Rewards:
    """The rewards of a run, some of which have become NaN: what the pool makes of infinity too."""

    plain: object
    case: _Case
    now: Callable[[], bool]
    names: Sequence[str] = ("letter",)
    weights: Sequence[float] = (1.0,)

    def score(self, groups: Sequence[Sequence[Completion]]) -> LetterScores:
        scores: LetterScores = self.plain.score(groups)  # type: ignore[attr-defined]
        if not self.now():
            return scores
        values = [list(group) for group in scores.rewards]
        for group in values if self.case.everywhere else values[:1]:
            for i in range(len(group) if self.case.everywhere else 1):
                group[i] = math.nan
        return LetterScores([[[v] for v in group] for group in values], values)


def _copy(state: TrainState) -> dict[str, Tensor]:
    leaves = state.learner.named_parameters()
    tensors: Mapping[str, Tensor] = {**leaves, **state_tensors(state.optimizer, leaves)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
