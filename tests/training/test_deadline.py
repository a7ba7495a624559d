"""Waits end: in Python by an error that names what is awaited, elsewhere with the process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, tiny_run

from rlkit.training import checkpoint
from rlkit.training.collect import Collector
from rlkit.training.deadline import Deadline, Hung, TimedGenerator
from rlkit.training.stopping import StopRequest
from rlkit.types import Prompt, Rollout, SamplingConfig


def deadline(seconds: float) -> Deadline:
    return Deadline(seconds=seconds, option="stop.silence_seconds")


def test_silence_ends_a_wait_that_sleeps_and_names_it() -> None:
    begun = time.monotonic()
    said = r"no sign of life for 0.2 s while waiting for vLLM \(stop.silence_seconds\)"
    with pytest.raises(Hung, match=said), deadline(0.2).waiting("vLLM"):
        threading.Event().wait(30)
    assert time.monotonic() - begun < 2.0


def test_signs_of_life_keep_it_going_and_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    watched = deadline(0.3)
    with watched.waiting("tokens"):
        for _ in range(6):
            time.sleep(0.1)
            watched.alive()
    watched.alive()  # outside of a wait it arms nothing
    time.sleep(0.4)
    assert signal.getsignal(signal.SIGALRM) is before


def test_zero_is_for_ever_and_other_threads_are_not_watched() -> None:
    with deadline(0.0).waiting("nothing"):
        time.sleep(0.05)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with deadline(0.05).waiting("nothing"):
                time.sleep(0.2)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == []


def test_what_swallows_the_error_meets_the_last_resort() -> None:
    said: list[str] = []
    stubborn = Deadline(seconds=0.1, option="x", grace_s=0.2, last_resort=said.append)
    with stubborn.waiting("a library"):
        for _ in range(10):
            try:
                time.sleep(0.1)
            except Hung:
                continue
    assert said == ["no sign of life for 0.1 s while waiting for a library (x)"]


class Stuck:
    """A generator that works twice and then hangs."""

    def __init__(self, generator: object, calls: int) -> None:
        self.generator, self.calls = generator, calls

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        self.calls -= 1
        if self.calls < 0:
            time.sleep(60)
        found: list[list[Rollout]] = self.generator.generate(  # type: ignore[attr-defined]
            prompts, num_samples=num_samples, sampling=sampling, seeds=seeds
        )
        return found

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        self.generator.load_adapter(tensors, version)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Nothing is held."""


def test_a_run_whose_engine_hangs_ends_and_keeps_its_last_step(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=4)
    engine = TimedGenerator(Stuck(trainer.generator, calls=3), deadline(1.0), name="generator=vllm")
    assert isinstance(trainer.collector, Collector)
    collector = replace(trainer.collector, generator=engine)
    with pytest.raises(Hung, match="waiting for generator=vllm to sample 12 completions"):
        replace(trainer, generator=engine, collector=collector).fit(state, stop=StopRequest())
    saved, _ = checkpoint.load_newest(tmp_path / "checkpoints", device=CPU)
    assert saved is not None and saved.progress.step == len(tracker.steps) == 3
