"""Streamed rows: each once an epoch, the same after a restart, none that is held out."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from rlkit.tasks import BadRows, build_task
from rlkit.tasks.config import DatasetConfig


def write(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return str(path)


def config(path: str, held: str, **options: object) -> DatasetConfig:
    columns = {"prompt": "prompt"}
    return DatasetConfig(path=path, eval_path=held, columns=columns, stream=True, **options)  # type: ignore[arg-type]


def texts(path: str, held: str, count: int, **options: object) -> list[str]:
    task = build_task(config(path, held, **options))
    assert task.train.size is None
    found = [task.train.get(i).prompt for i in range(count)]
    return [turns[-1].content if not isinstance(turns, str) else turns for turns in found]


@pytest.mark.parametrize("size", [1, 2, 7, 30, 64])
def test_every_row_comes_once_an_epoch(size: int, tmp_path: Path) -> None:
    rows = [f"row {i}" for i in range(size)]
    path, held = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", ["other"])
    found = texts(path, held, 3 * size)
    epochs = [found[i * size : (i + 1) * size] for i in range(3)]
    assert all(sorted(epoch) == sorted(rows) for epoch in epochs)
    assert size < 7 or epochs[0] != epochs[1] != rows
    assert texts(path, held, 3 * size) == found
    assert size < 7 or texts(path, held, size, seed=1) != epochs[0]


def test_several_files_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}')
    (tmp_path / "train-1.jsonl").write_text('\ufeff{"prompt": "ä"}\n')
    (tmp_path / "train-2.jsonl").write_text("")
    write(tmp_path / "test.jsonl", ["z"])
    task = build_task(config(str(tmp_path), ""))
    found = {str(task.train.get(i).prompt) for i in range(3)}
    assert len(found) == 3
    assert sorted(task.train.get(i).where.split()[1] for i in range(3)) == ["0", "0", "1"]


def test_held_out_rows_are_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [f"row {i}" for i in range(20)])
    held = write(tmp_path / "b.jsonl", ["row 3", "row 8"])
    assert not {"row 3", "row 8"} & set(texts(path, held, 200))


def test_bad_rows_are_named_or_replaced(tmp_path: Path) -> None:
    path, held = str(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", ["z"])
    Path(path).write_text('{"prompt": "a"}\n{"prompt": 3}\n{nonsense\n[1]\n{"prompt": "b"}\n')
    with pytest.raises(ValueError, match=r"row \d of .*a\.jsonl"):
        texts(path, held, 5)
    assert set(texts(path, held, 50, bad_rows=BadRows.drop)) == {"a", "b"}
    Path(path).write_text('{"prompt": 3}\n')
    with pytest.raises(ValueError, match="must hold rows to train on, got none: row 0 of"):
        texts(path, held, 1, bad_rows=BadRows.drop)
    Path(path).write_text("\n")
    with pytest.raises(ValueError, match=r"task\.path must hold rows, got none from"):
        texts(path, held, 1)


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(ValueError, match=r"task\.eval_path must say what to hold out"):
        build_task(config(path, ""))
    with pytest.raises(ValueError, match=r"task\.eval_fraction must be 0 with task\.stream=true"):
        config(path, "", eval_fraction=0.5)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must hold \.jsonl files with task\.stream=true"):
        build_task(config(str(tmp_path / "a.json"), path))


def test_memory_holds_eight_bytes_a_row(tmp_path: Path) -> None:
    """20,000 rows of 1 kB: 20 MB on the disk, and about 0.2 MB of starts in memory."""
    path = write(tmp_path / "a.jsonl", [f"{i} " + "x" * 1000 for i in range(20_000)])
    held = write(tmp_path / "b.jsonl", ["z"])
    tracemalloc.start()
    task = build_task(config(path, held))
    task.train.get(12_345)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 1_000_000
