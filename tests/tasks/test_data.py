"""Rows from files: the two halves, and an error of one line for everything that can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rlkit.tasks import BadRows, Example, Message, PromptStyle, build_task
from rlkit.tasks.config import DatasetConfig, GSM8KConfig
from rlkit.tasks.rows import GSM8K_SYSTEM_PROMPT

TRAIN = [{"question": f"What is {i} + 1?", "answer": f"so\n#### {i + 1:,}"} for i in range(2000)]
TEST = [{"question": f"What is {i} + 2?", "answer": f"so\n#### {i + 2}"} for i in range(50)]


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text_of(example: Example) -> str:
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train.json", "test.json"),
        ("main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"),
    ],
)
def test_gsm8k_from_a_folder(train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path / train, TRAIN)
    write(tmp_path / test, TEST)
    task = build_task(GSM8KConfig(path=str(tmp_path), eval_size=40))
    assert (task.train.size, task.eval.size) == (2000, 40)
    example = task.train.get(1999)
    assert example.prompt == (
        Message("system", GSM8K_SYSTEM_PROMPT),
        Message("user", "What is 1999 + 1?"),
    )
    assert example.columns["answer"] == "2000"  # without the thousands separator
    assert [spec.fn for spec in task.rewards] == [
        "xmlcount",
        "soft_format",
        "strict_format",
        "int",
        "correctness",
    ]
    questions = {row["question"] for row in TEST}
    held = [text_of(task.eval.get(i)) for i in range(40)]
    assert set(held) <= questions and len(set(held)) == 40
    again = build_task(GSM8KConfig(path=str(tmp_path), eval_size=40))
    assert [text_of(again.eval.get(i)) for i in range(40)] == held


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "train-00001.jsonl", TRAIN[1000:])
    write(tmp_path / "train-00000.jsonl", TRAIN[:1000])
    write(tmp_path / "training_notes.json", [])  # another word, not another shard
    write(tmp_path / "test.jsonl", TEST)
    task = build_task(GSM8KConfig(path=str(tmp_path)))
    assert task.train.size == 2000
    assert text_of(task.train.get(1500)) == TRAIN[1500]["question"]


def test_a_share_of_one_file_is_held_out_by_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", TRAIN * 6)  # every prompt six times: 12,000 rows
    task = build_task(GSM8KConfig(path=path, eval_fraction=0.1, eval_size=10_000))
    assert task.train.size is not None and task.eval.size is not None
    assert task.train.size + task.eval.size == 12_000
    assert 0.07 < task.eval.size / 12_000 < 0.13  # 4.5 standard deviations of 2000 coin flips
    train = {text_of(task.train.get(i)) for i in range(task.train.size)}
    held = {text_of(task.eval.get(i)) for i in range(task.eval.size)}
    assert not train & held
    other = build_task(GSM8KConfig(path=path, eval_fraction=0.1, eval_size=10_000, seed=1))
    assert other.eval.size is not None
    assert held != {text_of(other.eval.get(i)) for i in range(other.eval.size)}


def test_training_rows_that_are_held_out_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "train.jsonl", TRAIN[:10] + TEST[:3])
    held = write(tmp_path / "held.jsonl", TEST)
    task = build_task(GSM8KConfig(path=path, eval_path=held))
    assert task.train.size == 10
    assert "3 training rows left out" in caplog.text


def test_rows_of_your_own(tmp_path: Path) -> None:
    rows = [
        {"q": "one", "a": 1, "extra": [1, {"x": 2.5}], "unused": 0},
        {"q": [{"role": "user", "content": "two"}], "a": 2, "extra": None, "unused": 0},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    held = write(tmp_path / "b.jsonl", [{"q": "three", "a": 3, "extra": True}])
    config = DatasetConfig(
        path=path,
        eval_path=held,
        columns={"prompt": "q", "answer": "a", "more": "extra"},
        system="Be brief.",
        gold="<answer>{answer}</answer> {other}",
        stop=["</answer>"],
    )
    task = build_task(config)
    first, second = task.train.get(0), task.train.get(1)
    system = Message("system", "Be brief.")
    assert first == Example(
        prompt=(system, Message("user", "one")),
        columns={"answer": 1, "more": [1, {"x": 2.5}]},
    )
    assert second.prompt == (system, Message("user", "two"))
    assert task.stop == ("</answer>",)
    assert task.gold_completion is not None
    assert task.gold_completion(first) == "<answer>1</answer> {other}"
    assert task.rewards == () and task.success is None
    raw = DatasetConfig(
        path=held, eval_fraction=0.5, columns={"prompt": "q"}, style=PromptStyle.raw
    )
    with pytest.raises(ValueError, match=r"task.path must hold rows to (train|evaluate) on"):
        build_task(raw)


GOOD = {"q": "question", "a": "answer"}
BAD_ROWS: dict[str, tuple[list[Any], str]] = {
    "missing column": ([GOOD, {"a": "x"}], r"row 1 of .*rows.jsonl must have a column q, got a"),
    "missing answer": ([{"q": "x"}], r"row 0 of .*rows.jsonl must have a column a, got q"),
    "number": ([GOOD, GOOD, {"q": 3, "a": "x"}], r"row 2 of .*: column q must be text .*, got 3"),
    "null": ([{"q": None, "a": "x"}], r"row 0 of .*: column q must be text .*, got None"),
    "empty": ([{"q": "", "a": "x"}], r"row 0 of .*: column q must be text"),
    "white space": ([{"q": " \n", "a": "x"}], r"row 0 of .*: column q must be text"),
    "no messages": ([{"q": [], "a": "x"}], r"row 0 of .*: column q must be text"),
    "bad role": (
        [{"q": [{"role": "me", "content": "x"}], "a": ""}],
        r"row 0 of .*: column q: message 0 must hold a role of system, developer, user",
    ),
    "no content": (
        [{"q": [{"role": "user"}], "a": ""}],
        r"column q: message 0: content must be text or a list of parts, got None",
    ),
    "image": (
        [{"q": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a": ""}],
        r"message 0: content must hold text parts only, got {'type': 'image'",
    ),
    "strings": ([{"q": ["x"], "a": ""}], r"column q: message 0 must hold a role of"),
    "no object": ([GOOD, [1]], r"row 1 of .*rows.jsonl must be an object, got list"),
    "no rows": ([], r"task.path must hold rows to train on, got none"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_name_row_and_column(case: str, tmp_path: Path) -> None:
    rows, message = BAD_ROWS[case]
    path = write(tmp_path / "rows.jsonl", rows)
    held = write(tmp_path / "held.jsonl", [GOOD])
    config = DatasetConfig(path=path, eval_path=held, columns={"prompt": "q", "answer": "a"})
    with pytest.raises(ValueError, match=message) as caught:
        build_task(config)
    assert "\n" not in str(caught.value)


def test_columns_must_be_json(tmp_path: Path) -> None:
    table = pa.table({"q": ["x"], "a": pa.array([b"bytes"], pa.binary())})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    held = write(tmp_path / "held.jsonl", [GOOD])
    config = DatasetConfig(path=str(path), eval_path=held, columns={"prompt": "q", "answer": "a"})
    with pytest.raises(ValueError, match=r"row 0 of .*: column a must be text, a number"):
        build_task(config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "bad.jsonl",
            b'{"q": "x"}\n{"q": ',
            r"task.path must be readable, got .*: line 2: Expecting",
        ),
        ("bad.json", b'{"q": "x"}', r"task.path must be readable, .*top level must be a list"),
        ("bad.parquet", b"PAR1 not", r"task.path must be readable, got .*bad.parquet"),
        ("bad.jsonl", b"\xff\xfe\x00", r"task.path must be readable, got .*utf-8"),
        ("bad.csv", b"q,a\n", r"task.path must end in .jsonl, .json, .parquet, got .*bad.csv"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = DatasetConfig(path=str(path), eval_fraction=0.1, columns={"prompt": "q"})
    with pytest.raises(ValueError, match=message) as caught:
        build_task(config)
    assert "\n" not in str(caught.value)


def test_there_must_be_an_eval_split(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", TRAIN)
    with pytest.raises(ValueError, match=r"a task needs an eval split"):
        build_task(GSM8KConfig(path=path))
    with pytest.raises(ValueError, match=r"must hold files test\*.* to evaluate on, got"):
        build_task(GSM8KConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"must hold files train\*.* to train on, got"):
        build_task(GSM8KConfig(path=write(tmp_path / "x" / "test.jsonl", TEST)[:-11]))
    with pytest.raises(ValueError, match=r"task.eval_path must be a file, got nowhere"):
        build_task(GSM8KConfig(path=path, eval_path="nowhere"))
    with pytest.raises(ValueError, match=r"eval_fraction must be 0 when task.eval_path is given"):
        GSM8KConfig(path=path, eval_path=path, eval_fraction=0.1)


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task.path must exist, got .*missing.jsonl"):
        build_task(GSM8KConfig(path=str(tmp_path / "missing.jsonl")))
    with pytest.raises(ValueError, match=r"task.path must name a file, a folder or a hub data set"):
        build_task(DatasetConfig(columns={"prompt": "q"}))
    with pytest.raises(ValueError, match=r"task.columns.prompt must name the column"):
        build_task(DatasetConfig(path="x", columns={"answer": "a"}))


def test_a_hub_id_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # import then raises ImportError
    with pytest.raises(ValueError, match=r"got openai/gsm8k: .* pip install 'rlkit-lm\[data\]'"):
        build_task(GSM8KConfig())


def test_answers_of_gsm8k(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": a} for a in ("#### -1,234", "7", "a #### b #### 3.5 ")]
    path = write(tmp_path / "train.jsonl", rows)
    held = write(tmp_path / "test.jsonl", TEST)
    task = build_task(GSM8KConfig(path=path, eval_path=held))
    assert [task.train.get(i).columns["answer"] for i in range(3)] == ["-1234", "7", "3.5"]
    write(tmp_path / "train.jsonl", [{"question": "q", "answer": "so ####"}])
    with pytest.raises(ValueError, match=r"row 0 of .*: column answer must have text after ####"):
        build_task(GSM8KConfig(path=path, eval_path=held))


def test_every_bad_row_is_named_and_can_be_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [GOOD, {"q": None, "a": "x"}, {"q": "two", "a": "x"}, {"a": "x"}]
    path = write(tmp_path / "rows.jsonl", rows)
    held = write(tmp_path / "held.jsonl", [{"q": "other", "a": "y"}])
    columns = {"prompt": "q", "answer": "a"}
    with pytest.raises(ValueError, match=r"row 1 of .*; row 3 of .*\(task.bad_rows=drop") as caught:
        build_task(DatasetConfig(path=path, eval_path=held, columns=columns))
    assert "\n" not in str(caught.value)
    drop = DatasetConfig(path=path, eval_path=held, columns=columns, bad_rows=BadRows.drop)
    task = build_task(drop)
    assert [text_of(task.train.get(i)) for i in range(2)] == ["question", "two"]
    assert task.train.get(1).where == f"row 2 of {path}"
    assert "2 rows left out: row 1 of" in caplog.text


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_byte_order_mark_is_read_over(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, [GOOD])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    held = write(tmp_path / "held.jsonl", [{"q": "other", "a": "y"}])
    columns = {"prompt": "q", "answer": "a"}
    task = build_task(DatasetConfig(path=str(path), eval_path=held, columns=columns))
    assert text_of(task.train.get(0)) == "question"


def test_messages_in_openai_shape(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "x", "weight": 1},
    ]
    path = write(tmp_path / "rows.jsonl", [{"q": messages}])
    held = write(tmp_path / "held.jsonl", [{"q": "other"}])
    columns = {"prompt": "q"}
    config = DatasetConfig(path=path, eval_path=held, columns=columns, ignore_keys=["weight"])
    prompt = build_task(config).train.get(0).prompt
    assert prompt == (
        Message("developer", "Be brief."),
        Message("user", "1+1"),
        Message("assistant", "", json.dumps({"tool_calls": [call]})),
        Message("tool", "2", '{"tool_call_id": "x"}'),
    )
