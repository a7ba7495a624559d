"""A decoding step's time by hand."""

from __future__ import annotations

from benchmarks.pace import Look, step_ms


def test_steps_one_by_one_and_in_bursts_take_the_same() -> None:
    prompts = [Look(0.0, 0), Look(50.0, 1), Look(100.0, 2)]  # a row's first token at a time
    steps = [Look(110.0 + 10 * i, 4 + 2 * i) for i in range(15)]
    burst = [Look(250.0, 32)]  # 15 tokens of two rows in 150 ms
    assert step_ms([*prompts, *steps], rows=2) == 10.0
    assert step_ms([*prompts, *burst], rows=2) == 10.0


def test_nothing_to_tell() -> None:
    assert step_ms([], rows=2) == 0.0
    assert step_ms([Look(0.0, 0), Look(5.0, 1)], rows=2) == 0.0
