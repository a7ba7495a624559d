"""Completions to imitate: their text, their tokens, and a line for each row that has none."""

from __future__ import annotations

import pytest
from tiny_tokenizers import byte_level_tokenizer

from rlkit.tasks import BadRows, Example, PromptStyle, Split, SplitName, Task
from rlkit.tasks.config import DatasetConfig, EchoConfig, OverlongTargets
from rlkit.tasks.rows import _gsm8k_target
from rlkit.tasks.synthetic import echo
from rlkit.tasks.targets import Targets, text_of, usable_targets
from rlkit.types import FinishReason

TOKENIZER = byte_level_tokenizer()
END = int(TOKENIZER.get_vocab()["<|im_end|>"])


def targets(
    *, stop: tuple[str, ...] = (), max_length: int = 20, end_id: int | None = END
) -> Targets:
    return Targets(
        text=lambda e: str(e.columns["c"]),
        tokenizer=TOKENIZER,
        end_id=end_id,
        stop=stop,
        max_length=max_length,
    )


def split_of(*texts: object) -> Split:
    examples = [
        Example(prompt=f"p{i}", columns={"c": t}, where=f"row {i} of x.jsonl")
        for i, t in enumerate(texts)
    ]
    return Split(SplitName.train, examples.__getitem__, len(examples))


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_a_target_ends_as_a_sample_ends() -> None:
    example = Example(prompt="p", columns={"c": "zz"})
    assert targets().of(example, index=0) == ((*ids("zz"), END), FinishReason.stop)
    assert targets(end_id=None).of(example, index=0).ids == ids("zz")
    line = Example(prompt="p", columns={"c": " 9\n"})
    assert targets(stop=("\n",)).of(line, index=0) == (ids(" 9\n"), FinishReason.stop)
    assert targets(stop=("\n",)).of(example, index=0).ids == (*ids("zz"), END)
    cut = targets(max_length=2).of(Example(prompt="p", columns={"c": "zzz"}), index=0)
    assert cut == (ids("zzz")[:2], FinishReason.length)


def test_gsm8k_imitates_its_own_solution_without_the_calculator() -> None:
    solution = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    example = Example(prompt="q", columns={"answer": "72", "solution": solution})
    assert _gsm8k_target(example) == (
        "<reasoning>\nShe sold 48/2 = 24 clips.\nIn all 48+24 = 72.\n</reasoning>\n"
        "<answer>\n72\n</answer>\n"
    )


def test_where_the_text_comes_from() -> None:
    task = echo(EchoConfig())
    example = Example(prompt="p", columns={"answer": "kiwi", "n": 1e-05, "braces": "{answer}"})
    assert text_of(task, EchoConfig())(example) == "<answer>kiwi</answer>"
    assert text_of(task, EchoConfig(target="answer"))(example) == "kiwi"
    assert text_of(task, EchoConfig(target="{answer}: {n}"))(example) == "kiwi: 0.00001"
    # One pass: braces in a column are text.
    assert text_of(task, EchoConfig(target="{braces}!"))(example) == "{answer}!"
    with pytest.raises(ValueError, match=r"task\.target must name columns of the task \(answer, n"):
        text_of(task, EchoConfig(target="solution"))(example)
    nothing = Task(
        name="dataset",
        style=PromptStyle.chat,
        train=split_of("a"),
        eval=split_of("b"),
        max_prompt_length=8,
        max_completion_length=8,
        stop=(),
        rewards=(),
        success=None,
        gold_completion=None,
    )
    with pytest.raises(ValueError, match="task dataset gives no completions"):
        text_of(nothing, DatasetConfig(path="x"))


def test_rows_without_a_target_are_named_or_dropped() -> None:
    rows = split_of("ok", "", "x\ny\n", "fine")
    rule = targets(stop=("\n",))
    with pytest.raises(ValueError) as error:
        usable_targets(rows, rule, overlong=OverlongTargets.error, bad_rows=BadRows.error)
    assert str(error.value).startswith(
        "2 of 4 train rows have no target: row 1 of x.jsonl: the target must be text, got nothing; "
        "row 2 of x.jsonl: the target must end where the stop string '\\n' is"
    )
    kept = usable_targets(rows, rule, overlong=OverlongTargets.error, bad_rows=BadRows.drop)
    assert [kept.split.get(i).columns["c"] for i in range(kept.split.size or 0)] == ["ok", "fine"]
    assert kept.notes[0].startswith("2 of 4 train rows left out: row 1")


def test_long_targets_are_named_dropped_or_cut() -> None:
    rows = split_of("z", "zzzzzz")  # 2 and 7 tokens, with the end
    rule = targets(max_length=4)
    with pytest.raises(
        ValueError, match=r"task\.max_completion_length must be >= 7 .* got 4: row 1"
    ):
        usable_targets(rows, rule, overlong=OverlongTargets.error, bad_rows=BadRows.error)
    dropped = usable_targets(rows, rule, overlong=OverlongTargets.drop, bad_rows=BadRows.error)
    assert dropped.split.size == 1
    cut = usable_targets(rows, rule, overlong=OverlongTargets.truncate, bad_rows=BadRows.error)
    assert cut.split.size == 2 and "cut on the right" in cut.notes[0]
    with pytest.raises(ValueError, match="must leave train targets"):
        usable_targets(
            split_of("zzzzzz"), rule, overlong=OverlongTargets.drop, bad_rows=BadRows.error
        )
