"""The loop as a whole: it learns, splits exactly, resumes bitwise, and survives what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CPU, Recorder, flat, tiny_run

from rlkit.algorithms import RatioConfig
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.models.config import TuningKind
from rlkit.tracking import comparable
from rlkit.tracking.base import EvalRecord, StepRecord
from rlkit.training import checkpoint
from rlkit.training.collect import Collector
from rlkit.training.evaluate import Evaluator
from rlkit.training.optim import OptimConfig, state_tensors
from rlkit.training.progress import restore
from rlkit.training.stopping import Interrupted, StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import NonFiniteGradients, TrainState
from rlkit.types import Algorithm, LossOutput, PolicyOutput, TrainBatch

SEVERAL = OptimConfig(learning_rate=0.02, inner_epochs=2, minibatches=3)


def test_a_tiny_policy_learns_its_letter(tmp_path: Path) -> None:
    optim, algorithm = OptimConfig(learning_rate=0.01), GRPOConfig(group_size=8)
    trainer, state, tracker = tiny_run(tmp_path, num_steps=25, optim=optim, algorithm=algorithm)
    trainer.fit(state, stop=StopRequest())
    before, after = tracker.evaluations
    assert (before.label, after.label) == ("before", "after")
    assert before.interval.mean < 0.4
    assert after.interval.mean > 0.95


def test_kl_is_exactly_zero_at_step_0_and_positive_later(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=3)
    trainer.fit(state, stop=StopRequest())
    kl = [record.metrics["kl"] for record in tracker.steps]
    assert kl[0] == 0.0
    assert all(value > 1e-4 for value in kl[1:])


def test_without_detach_the_policy_never_moves(tmp_path: Path) -> None:
    """The broken run of unsloth_2025: gradient norm and KL exactly 0, and B stays 0."""
    trainer, state, tracker = tiny_run(tmp_path, num_steps=3, ratio=RatioConfig(detach=False))
    trainer.fit(state, stop=StopRequest())
    assert [r.metrics["grad_norm"] for r in tracker.steps] == [0.0, 0.0, 0.0]
    assert [r.metrics["kl"] for r in tracker.steps] == [0.0, 0.0, 0.0]
    learned = {k: v for k, v in state.learner.named_parameters().items() if "lora_B" in k}
    assert not flat(learned).any()


@pytest.mark.parametrize(
    ("optim", "tuning", "dtype"),
    [
        pytest.param(None, TuningKind.lora, torch.float32, id="on-policy"),
        pytest.param(SEVERAL, TuningKind.lora, torch.float32, id="epochs-and-minibatches"),
        pytest.param(SEVERAL, TuningKind.full, torch.bfloat16, id="all weights"),
    ],
)
def test_resume_is_bitwise(
    tmp_path: Path, optim: OptimConfig | None, tuning: TuningKind, dtype: torch.dtype
) -> None:
    """run(4) == run(2) + resume(2): parameters, optimiser moments and every metric but timings."""
    make = partial(tiny_run, num_steps=4, optim=optim, tuning=tuning, dtype=dtype)
    trainer, state, whole = make(tmp_path / "whole")
    trainer.fit(state, stop=StopRequest())
    expected = checkpoint.load(tmp_path / "whole/checkpoints/step-000004", device=CPU)

    trainer, state, first = make(tmp_path / "parts")
    stop = StopRequest()
    first.step = _stop_after(first.steps, 2, stop)  # type: ignore[method-assign, assignment]
    with pytest.raises(Interrupted):
        trainer.fit(state, stop=stop)

    trainer, state, second = make(tmp_path / "parts")
    saved, problems = checkpoint.load_newest(tmp_path / "parts/checkpoints", device=CPU)
    assert saved is not None and saved.progress.step == 2 and problems == []
    trainer.fit(restore(state, saved), stop=StopRequest())
    found = checkpoint.load(tmp_path / "parts/checkpoints/step-000004", device=CPU)

    assert found.progress == expected.progress
    for name in ("parameters", "moments"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    resumed = [comparable(r.metrics) for r in [*first.steps, *second.steps]]
    assert resumed == [comparable(r.metrics) for r in whole.steps]
    assert second.evaluations[-1].values == whole.evaluations[-1].values


def _stop_after(
    records: list[StepRecord], count: int, stop: StopRequest
) -> Callable[[StepRecord], None]:
    def step(record: StepRecord) -> None:
        records.append(record)
        if len(records) == count:
            stop.request("test")

    return step


@pytest.mark.parametrize("optim", [None, SEVERAL], ids=["on-policy", "epochs-and-minibatches"])
def test_the_gradient_does_not_depend_on_the_split(
    tmp_path: Path, optim: OptimConfig | None
) -> None:
    """One micro-batch against one row each, in float64: equal parameters after two steps."""
    ends = []
    for tokens in (10_000, 1):
        trainer, state, _ = tiny_run(
            tmp_path / str(tokens),
            num_steps=2,
            optim=optim,
            tokens_per_microbatch=tokens,
            dtype=torch.float64,
        )
        trainer.fit(state, stop=StopRequest())
        ends.append(flat(state.learner.named_parameters()))
    start = flat(tiny_run(tmp_path / "start")[1].learner.named_parameters())
    moved = (ends[0] - start).abs().max()
    assert moved > 1e-3
    # transformers' RMSNorm rounds to float32 even here; the losses themselves split to 1e-10
    # (test_contract.py).
    assert (ends[0] - ends[1]).abs().max() < 1e-5 * moved


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=2)
    leaf = next(iter(state.learner.named_parameters().values()))
    leaf.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
    before = flat(state.learner.named_parameters()).clone()
    trainer.fit(state, stop=StopRequest())
    assert torch.equal(flat(state.learner.named_parameters()), before)
    assert [r.metrics["skipped_updates"] for r in tracker.steps] == [1.0, 1.0]


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=2)

    def algorithm(step: int) -> Algorithm:
        plain = trainer.algorithm(step)

        def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
            value, metrics = plain.loss(out, batch)
            return LossOutput(value + math.inf, metrics)

        return plain._replace(loss=loss)

    before = flat(state.learner.named_parameters()).clone()
    replace(trainer, algorithm=algorithm).fit(state, stop=StopRequest())
    assert torch.equal(flat(state.learner.named_parameters()), before)
    assert not state_tensors(state.optimizer, state.learner.named_parameters())
    assert [r.metrics["skipped_updates"] for r in tracker.steps] == [1.0, 1.0]
    assert all(math.isfinite(r.metrics["grad_norm"]) for r in tracker.steps)


@pytest.mark.parametrize("error", [Interrupted, RuntimeError, KeyError])
def test_an_evaluation_that_was_broken_off_is_made_when_the_run_goes_on(
    tmp_path: Path, error: type[Exception]
) -> None:
    def evaluated(tracker: Recorder) -> list[tuple[str, tuple[float, ...]]]:
        return [(record.label, record.values) for record in tracker.evaluations]

    def make(folder: Path) -> tuple[Trainer, TrainState, Recorder]:
        trainer, state, tracker = tiny_run(folder, num_steps=4)
        schedule = replace(trainer.schedule, evaluate_every=1)
        return replace(trainer, schedule=schedule), state, tracker

    whole, state, expected = make(tmp_path / "whole")
    whole.fit(state, stop=StopRequest())
    assert [label for label, _ in evaluated(expected)] == [
        *("before", "step 1", "step 2", "step 3", "after")
    ]
    trainer, state, first = make(tmp_path / "parts")
    evaluate = trainer.evaluate

    def broken(label: str, step: int) -> EvalRecord:
        if step == 1:
            raise error("in an evaluation")
        return evaluate(label, step)

    with pytest.raises(error):
        replace(trainer, evaluate=broken).fit(state, stop=StopRequest())
    saved, _ = checkpoint.load_newest(tmp_path / "parts/checkpoints", device=CPU)
    assert saved is not None and saved.progress.step == 1
    trainer, state, second = make(tmp_path / "parts")
    trainer.fit(restore(state, saved), stop=StopRequest(), on_record=())
    assert evaluated(first) + evaluated(second) == evaluated(expected)
    trainer, state, third = make(tmp_path / "parts")
    trainer.fit(restore(state, saved), stop=StopRequest(), on_record={"step 1"})
    assert evaluated(third) == evaluated(expected)[2:]


def test_a_full_disk_at_the_last_save_does_not_hide_the_error(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=4)
    trainer = replace(trainer, schedule=replace(trainer.schedule, checkpoint_every=9))
    step = tracker.step

    def full(record: StepRecord) -> None:
        step(record)
        if len(tracker.steps) == 2:
            (tmp_path / "checkpoints").write_text("a file where a folder should be")
            stop.request("SIGTERM")

    tracker.step = full  # type: ignore[method-assign]
    stop = StopRequest()
    with pytest.raises(Interrupted, match="SIGTERM"):
        trainer.fit(state, stop=stop)


def test_too_many_such_gradients_stop_the_run(tmp_path: Path) -> None:
    optim = OptimConfig(learning_rate=0.02, max_skipped_updates=2)
    trainer, state, tracker = tiny_run(tmp_path, num_steps=5, optim=optim)
    leaf = next(iter(state.learner.named_parameters().values()))
    leaf.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
    with pytest.raises(NonFiniteGradients, match=r"2 updates in a row"):
        trainer.fit(state, stop=StopRequest())
    assert len(tracker.steps) == 1


def test_an_error_between_updates_saves_the_last_step(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=4)
    generate = trainer.generator.generate

    def broken(*args: object, **kwargs: object) -> object:
        if len(tracker.steps) == 3:
            raise RuntimeError("engine lost")
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    trainer.generator.generate = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="engine lost"):
        trainer.fit(state, stop=StopRequest())
    saved, _ = checkpoint.load_newest(tmp_path / "checkpoints", device=CPU)
    assert saved is not None and saved.progress.step == 3


def test_groups_without_signal_are_replaced_by_other_prompts(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=1, resample=True)
    trainer.fit(state, stop=StopRequest())
    metrics = tracker.steps[0].metrics
    plain, plain_state, plain_tracker = tiny_run(tmp_path / "plain", num_steps=1)
    plain.fit(plain_state, stop=StopRequest())
    assert plain_tracker.steps[0].metrics["frac_reward_zero_std"] > 0
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["rollouts/uninformative_groups"] > 0


def test_reported_numbers_are_those_of_the_samples(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=1)
    trainer.fit(state, stop=StopRequest())
    record = tracker.steps[0]
    rewards = [row.reward for row in record.samples]
    assert rewards == [row.completion.count("a") / 6 for row in record.samples]
    assert record.metrics["reward"] == pytest.approx(sum(rewards) / 12, abs=1e-12)
    assert (
        record.metrics["completions/mean_length"] == sum(r.num_tokens for r in record.samples) / 12
    )
    assert sum(row.advantage or 0.0 for row in record.samples) == pytest.approx(0.0, abs=1e-5)
    times = {k: v for k, v in record.metrics.items() if k.startswith("time/")}
    parts = sum(v for k, v in times.items() if k != "time/step")
    assert times["time/step"] == pytest.approx(parts, abs=1e-9)


class Events:
    """A generator that notes what it is asked for and hands it on."""

    def __init__(self, generator: Any, events: list[str]) -> None:
        self._generator, self._events = generator, events

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        self._events.append(f"load {version}")
        self._generator.load_adapter(tensors, version)

    def close(self) -> None:
        self._generator.close()

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self._events.append("generate")
        return self._generator.generate(*arguments, **options)


def test_an_engine_begins_each_step_as_after_a_resume(tmp_path: Path) -> None:
    """The adapter is loaded between an evaluation and a step: then no cached prompt is left."""
    events: list[str] = []
    trainer, state, _ = tiny_run(tmp_path, num_steps=2)
    watched = Events(trainer.generator, events)
    assert isinstance(trainer.collector, Collector) and isinstance(trainer.evaluate, Evaluator)
    trainer = replace(
        trainer,
        generator=watched,
        collector=replace(trainer.collector, generator=watched),
        evaluate=replace(trainer.evaluate, generator=watched),
        schedule=replace(trainer.schedule, evaluate_every=1),
    )
    trainer.fit(state, stop=StopRequest())
    step = ["load 0", "generate", "load 1", "generate", "load 1", "generate", "load 2"]
    assert events == ["load 0", "generate", *step, "generate", "load 2"]
