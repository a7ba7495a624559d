"""The step bench's own arithmetic; the sides need vLLM and TRL and run by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_model import byte_tokenizer
from benchmarks.step import table
from benchmarks.step_reward import noise, score
from benchmarks.step_sides import PROMPT_TOKENS, Work, wall_seconds, write_prompts
from benchmarks.step_trl import Clock
from rlkit.types import Completion, FinishReason, Prompt


def test_prompts_are_different_and_of_one_length(tmp_path: Path) -> None:
    work = Work(tmp_path, 3, 2, 8, warmup=1, steps=2, trl_rows=2)
    write_prompts(work)
    tokenizer = byte_tokenizer()
    texts = [
        json.loads(x)["prompt"] for x in (tmp_path / "prompts.jsonl").read_text().split("\n")[:-1]
    ]
    held = json.loads((tmp_path / "held_out.jsonl").read_text())["prompt"]
    assert len(texts) == 9
    assert len({*texts, held}) == 10
    assert {len(tokenizer(text)["input_ids"]) for text in [*texts, held]} == {PROMPT_TOKENS}


def test_both_sides_get_the_same_noise() -> None:
    prompt = Prompt(index=0, ids=(1,), text="p")
    group = [
        Completion(prompt=prompt, text=text, ids=(2,), finish_reason=FinishReason.length)
        for text in ("a", "b", "ab")
    ]
    assert score(group) == [noise("a"), noise("b"), noise("ab")]
    assert len(set(score(group))) == 3
    assert all(0 <= value < 1 for value in score(group))


def test_a_phase_inside_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1.0
    monkeypatch.setattr(Clock, "_now", lambda self: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def outer() -> None:
        passes(0.5)
        clock.timed("sync", passes)(0.25)

    clock = Clock()
    clock.next()
    clock.timed("generate", outer)()
    passes(0.125)
    clock.next()
    assert clock.steps == [{"sync": 0.25, "generate": 0.5, "update": 0.125, "step": 0.875}]


def test_a_step_of_rlkit_is_all_that_passed_between_two_lines() -> None:
    phases = {"generate": 2.0, "reward": 0.25, "score": 0.5, "update": 1.0, "sync": 0.125}
    lines = [
        {"time/unix": t, "time/step": 3.9} | {f"time/{k}": v for k, v in phases.items()}
        for t in (10.0, 20.0, 24.0, 29.0)
    ]
    seconds = wall_seconds(lines, 2)
    assert seconds["step"] == [4.0, 5.0]
    assert seconds["other"] == [0.125, 1.125]
    assert seconds["update"] == [1.0, 1.0]


def test_the_table_compares_medians() -> None:
    rlkit: dict[str, Any] = {"seconds": {"generate": [1.0, 3.0, 2.0], "step": [2.0, 9.0, 2.5]}}
    trl: dict[str, Any] = {"seconds": {"generate": [4.0, 4.0, 4.0], "step": [5.0, 5.0, 5.0]}}
    results: dict[str, dict[str, Any]] = {
        "rlkit": rlkit | {"device_peak_bytes": 2e9},
        "trl": trl | {"device_peak_bytes": 5e10},
        "trl_whole": {"error": "exit code 1: out of memory"},
    }
    lines = table(results).split("\n")
    assert "| generate | 2.000 | 4.000 |" in lines
    assert "| device memory, GB | 2.0 | 50.0 |" in lines
    assert "| times rlkit's step | 1.00 | 2.00 |" in lines
    assert lines[-1] == "trl_whole: exit code 1: out of memory"
