"""Countdown, summaries, pairs, mixtures: right by construction, disjoint, the same every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewards.countdown import value_of
from rlkit.rewards.load import load
from rlkit.tasks import Example, Message, PromptStyle, Task, build_task
from rlkit.tasks.more_config import CountdownConfig, MixConfig, PreferencesConfig, TLDRConfig
from rlkit.types import Completion, FinishReason, Prompt


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def completion(example: Example, text: str) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="q", columns=example.columns)
    return Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)


def test_every_countdown_has_a_solution_that_uses_each_number_once() -> None:
    task = build_task(CountdownConfig(eval_size=50))
    assert task.success is not None and task.gold_completion is not None
    for split, size in ((task.train, 200), (task.eval, 50)):
        for index in range(size):
            example = split.get(index)
            numbers, target = example.columns["numbers"], example.columns["target"]
            assert isinstance(numbers, list) and isinstance(target, int)
            assert 3 <= len(numbers) <= 4 and 10 <= target <= 100 and max(numbers) <= 99
            assert value_of(str(example.columns["solution"]), numbers) == target
            assert task.success(completion(example, task.gold_completion(example)))
    held = {task.eval.get(i).prompt for i in range(50)}
    assert not held & {task.train.get(i).prompt for i in range(500)}
    again = build_task(CountdownConfig(eval_size=50))
    assert again.train.get(7) == task.train.get(7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_numbers": 10**30}, r"task.min_numbers must be in \[2, 6\], got 1000"),
        ({"min_numbers": 5}, r"task.max_numbers must be in \[5, 6\], got 4"),
    ],
)
def test_a_countdown_names_the_number_that_is_wrong(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CountdownConfig(**options)  # type: ignore[arg-type]


def test_tldr_from_a_folder(tmp_path: Path) -> None:
    row = {"prompt": "SUBREDDIT: r/x\n\nPOST: I ran.\n\nTL;DR:", "completion": " Ran."}
    write(tmp_path / "train.jsonl", [row])
    write(tmp_path / "test.jsonl", [{**row, "prompt": "POST: I sat.\n\nTL;DR:"}])
    task = build_task(TLDRConfig(path=str(tmp_path)))
    assert task.style is PromptStyle.raw and task.target is not None
    assert task.train.get(0).prompt == row["prompt"]
    assert task.target(task.train.get(0)) == " Ran."
    write(tmp_path / "test.jsonl", [{"prompt": "x", "completion": ""}])
    with pytest.raises(ValueError, match=r"row 0 of .*test.jsonl: column completion must be text"):
        build_task(TLDRConfig(path=str(tmp_path)))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello!", "rejected": "No."},
        {
            "prompt": [turn("user", "Hi?")],
            "chosen": [turn("assistant", "Hello!")],
            "rejected": [turn("assistant", "No.")],
        },
        {
            "chosen": [turn("user", "Hi?"), turn("assistant", "Hello!")],
            "rejected": [turn("user", "Hi?"), turn("assistant", "No.")],
        },
    ],
    ids=["text", "messages", "no prompt"],
)
def test_pairs_in_three_shapes(row: dict[str, Any], tmp_path: Path) -> None:
    other = {"prompt": "What?", "chosen": "This.", "rejected": "That."}
    path, held = write(tmp_path / "a.jsonl", [row]), write(tmp_path / "b.jsonl", [other])
    task = build_task(PreferencesConfig(path=path, eval_path=held))
    example = task.train.get(0)
    assert example.prompt == (Message("user", "Hi?"),)
    assert example.columns == {"chosen": "Hello!", "rejected": "No."}
    assert task.target is not None and task.target(example) == "Hello!"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected must differ"),
        ({"prompt": "a", "chosen": "b"}, "must have a column rejected, got prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, "must have a column prompt, or conversations"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "column prompt must be text or a list"),
        (
            {"prompt": "a", "chosen": ["b"], "rejected": "c"},
            "column chosen must be text or one turn",
        ),
        (
            {"chosen": [turn("user", "x")], "rejected": [turn("user", "y")]},
            "must begin with the same turns",
        ),
    ],
)
def test_pairs_that_are_none(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError, match=message) as error:
        build_task(PreferencesConfig(path=path, eval_path=path))
    assert "row 0 of" in str(error.value)


PARTS = {
    "sums": {"name": "chain_sum", "weight": 3, "eval_size": 8, "max_completion_length": 8},
    "max": {"name": "max_of_n", "eval_size": 4},
}


def mixture(**options: Any) -> Task:
    return build_task(MixConfig(**{"parts": PARTS, "max_completion_length": 8, **options}))


def test_a_mixture_has_the_exact_shares_and_no_memory() -> None:
    task = mixture()
    counts = Counter(task.train.get(i).columns["part"] for i in range(5000, 6000))
    assert counts == {"sums": 750, "max": 250}
    # The examples of a part are the part's own, each once and in order.
    own = build_task(MixConfig(parts=PARTS, max_completion_length=8))
    from rlkit.tasks.config import ChainSumConfig

    sums = build_task(ChainSumConfig(eval_size=8)).train
    found = [e for e in map(task.train.get, range(40)) if e.columns["part"] == "sums"]
    assert [e.prompt for e in found] == [sums.get(i).prompt for i in range(len(found))]
    assert own.train.get(123_456_789) == task.train.get(123_456_789)


def test_a_mixture_judges_by_part() -> None:
    task = mixture()
    assert [task.eval.get(i).columns["part"] for i in range(4)] == ["sums", "max", "sums", "max"]
    assert task.eval.size == 12
    assert [s.name for s in task.rewards] == ["sums_raw_exact", "max_raw_exact"]
    assert task.success is not None and task.gold_completion is not None and task.answer is not None
    functions = [load(s.name, s.fn, s.options).function for s in task.rewards]
    for index in range(4):
        example = task.eval.get(index)
        right = completion(example, task.gold_completion(example))
        assert task.success(right) and task.answer(right) is not None
        applies = example.columns["part"] == "sums"
        assert [f(right) for f in functions] == ([1.0, None] if applies else [None, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {"a": {"name": "echo"}}}, "task.parts must hold two tasks or more, got a"),
        ({"parts": {**PARTS, "x": {"name": "sums"}}}, "task.parts.x.name must be one of"),
        ({"parts": {**PARTS, "x": {"name": "echo"}}}, "task.parts must agree in stop"),
        ({"parts": {**PARTS, "x": {"name": "mix"}}}, "must be a task that is no mixture"),
        ({"parts": {**PARTS, "x": {"name": "echo", "weight": 0}}}, "weight must be > 0 and finite"),
        ({"parts": {**PARTS, "x": {"name": "max_of_n", "m": 3}}}, "task.parts.x: Key 'm' not in"),
        ({"parts": {**PARTS, "x": {"name": "max_of_n", "n": 99}}}, "task.n must be in"),
        (
            {"max_completion_length": 4},
            "max_completion_length must be <= task.max_completion_length",
        ),
    ],
)
def test_mixtures_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        mixture(**options)
    assert "\n" not in str(error.value)
