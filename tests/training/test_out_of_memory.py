"""Memory that runs out makes micro-batches smaller; the gradient and the updates stay the same.

The CPU never runs out, so an injector raises what CUDA would, at the forward passes it is told.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, Recorder, flat, tiny_run

from rlkit.tracking.base import Level
from rlkit.training import checkpoint
from rlkit.training.learner import Learner
from rlkit.training.out_of_memory import within_memory
from rlkit.training.progress import checkpoint_of, restore
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState
from rlkit.types import OutputSpec, PolicyOutput, RolloutBatch


@dataclass
class ShortOfMemory:
    """A learner whose forward passes number `at` fail, and all with more rows than `most_rows`."""

    learner: Learner
    at: Container[int] = ()
    most_rows: int = 10**9
    passes: int = 0
    rows: list[int] = field(default_factory=list)

    @property
    def adapter(self) -> object:
        return self.learner.adapter

    def named_parameters(self) -> dict[str, torch.Tensor]:
        return self.learner.named_parameters()

    def forward(
        self, batch: RolloutBatch, *, adapter: object, temperature: float, spec: OutputSpec
    ) -> PolicyOutput:
        self.passes += 1
        self.rows.append(len(batch))
        if self.passes in self.at or len(batch) > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.learner.forward(
            batch,
            adapter=adapter,  # type: ignore[arg-type]
            temperature=temperature,
            spec=spec,
        )


class Listener(Recorder):
    """A tracker that remembers messages as well."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def message(self, level: Level, text: str) -> None:
        self.said.append(text)


def short(
    folder: Path, *, at: Container[int] = (), most_rows: int = 10**9, num_steps: int = 2
) -> tuple[Trainer, TrainState, Listener, ShortOfMemory]:
    trainer, state, _ = tiny_run(folder, num_steps=num_steps, dtype=torch.float64)
    learner = ShortOfMemory(state.learner, at=at, most_rows=most_rows)
    state.learner = learner  # type: ignore[assignment]
    tracker = Listener()
    return replace_tracker(trainer, tracker), state, tracker, learner


def replace_tracker(trainer: Trainer, tracker: Listener) -> Trainer:
    from dataclasses import replace

    return replace(trainer, tracker=tracker)


@pytest.mark.parametrize("j", range(1, 5))
def test_the_jth_pass_may_fail_and_the_parameters_are_the_same(tmp_path: Path, j: int) -> None:
    """Passes 1 and 3 score with the reference, 2 and 4 update; a retry adds passes."""
    trainer, state, _, _ = short(tmp_path / "whole")
    trainer.fit(state, stop=StopRequest())
    expected = flat(state.learner.named_parameters())
    trainer, state, tracker, learner = short(tmp_path / "short", at={j})
    trainer.fit(state, stop=StopRequest())
    found = flat(state.learner.named_parameters())
    start = flat(tiny_run(tmp_path / "start")[1].learner.named_parameters())
    # transformers' RMSNorm rounds to float32 even here, as in test_trainer.py.
    assert (found - expected).abs().max() <= 1e-5 * (expected - start).abs().max()
    happened = learner.passes >= j and state.microbatch_divisor == 2
    assert happened == any("1/2 of the planned tokens" in text for text in tracker.said)
    assert happened


def test_it_goes_down_to_single_rows_and_stays_there(tmp_path: Path) -> None:
    trainer, state, tracker, learner = short(tmp_path, most_rows=1)
    trainer.fit(state, stop=StopRequest())
    assert state.microbatch_divisor >= 8
    assert learner.rows[-1] == 1
    after = [rows for rows in learner.rows[len(learner.rows) // 2 :] if rows > 1]
    assert after == [], "a size that did not fit is not tried again"
    assert len(tracker.said) == 1 and "ran out of memory in step 0" in tracker.said[0]


def test_rows_that_do_not_fit_alone_end_the_run(tmp_path: Path) -> None:
    trainer, state, _, learner = short(tmp_path, most_rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(state, stop=StopRequest())
    assert learner.passes < 12


def test_a_resumed_run_does_not_try_the_large_ones_again(tmp_path: Path) -> None:
    trainer, state, _, _ = short(tmp_path, most_rows=3)
    trainer.fit(state, stop=StopRequest())
    path = checkpoint.save(tmp_path / "kept", checkpoint_of(state, config_hash="tiny"), keep_last=2)
    fresh = tiny_run(tmp_path / "fresh")[1]
    restored = restore(fresh, checkpoint.load(path, device=CPU))
    assert restored.microbatch_divisor == state.microbatch_divisor > 1


def test_without_trouble_the_budget_is_handed_on_as_it_is(tmp_path: Path) -> None:
    batch = _batch()
    assert within_memory(lambda tokens: tokens, budget=0, batch=batch, divisor=1)[0] == 0
    assert within_memory(lambda tokens: tokens, budget=7, batch=batch, divisor=1)[0] == 7
    # 12 tokens in all: a budget of 0 or of more than that is 12, and then halved twice.
    assert within_memory(lambda tokens: tokens, budget=0, batch=batch, divisor=4)[0] == 3
    assert within_memory(lambda tokens: tokens, budget=100, batch=batch, divisor=4)[0] == 3


def _batch() -> RolloutBatch:
    from oracles import random_rollout

    return random_rollout(lengths=(2, 2, 2), group_size=1)  # with prompts of two tokens
