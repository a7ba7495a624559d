"""This module reads rows from files, folders and the hub, and divides them into two halves."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.runtime.distribution import how_to_install
from rlkit.tasks.base import Example, Split, SplitName
from rlkit.tasks.config import BadRows, DataConfig
from rlkit.tasks.generated import held_out
from rlkit.tasks.stream import Lines, streamed

DROP_HINT = " (task.bad_rows=drop leaves such rows out)"
_SHOWN = 5
_SUFFIXES = (".jsonl", ".json", ".parquet")
_UTF8 = "utf-8-sig"
"""UTF-8 with or without the byte-order mark that Windows programs write first."""
_log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """These are the rows of one source."""

    source: str
    """Where they came from, for messages."""
    rows: list[dict[str, Any]]


ToExample = Callable[[Mapping[str, Any], str], Example]
"""(row, "row 3 of FILE") to an example; raises ValueError naming both and the column."""


def data_splits(config: DataConfig, to_example: ToExample) -> tuple[Split, Split]:
    """Return the two halves of the rows that `config` names, every row checked.

    A training row whose prompt is held out is left out of training and counted in a warning. Eval
    examples are a random choice of `eval_size` held-out rows. Raises ValueError with one line.
    """
    if not config.path:
        raise ValueError("task.path must name a file, a folder or a hub data set, got nothing")
    if config.stream:
        return _streamed_splits(config, to_example)
    train_rows, held_rows = _halves(config)
    train, held = (_examples(rows, to_example, config.bad_rows) for rows in (train_rows, held_rows))
    if config.eval_fraction:
        is_held = [held_out(_key(e), config.seed, share=config.eval_fraction) for e in train]
        held = [e for e, h in zip(train, is_held, strict=True) if h]
        train = [e for e, h in zip(train, is_held, strict=True) if not h]
    held_keys = {_key(example) for example in held}
    kept = [example for example in train if _key(example) not in held_keys]
    if len(kept) < len(train):
        number = len(train) - len(kept)
        _log.warning("%d training rows left out: their prompts are held out", number)
    for name, examples in (("train on", kept), ("evaluate on", held)):
        if not examples:
            raise ValueError(f"task.path must hold rows to {name}, got none from {config.path}")
    return Split(SplitName.train, kept.__getitem__, len(kept)), _eval_split(config, held)


def _eval_split(config: DataConfig, held: Sequence[Example]) -> Split:
    chosen = random.Random(f"{config.seed}:{SplitName.eval.value}").sample(
        held, min(config.eval_size, len(held))
    )
    return Split(SplitName.eval, chosen.__getitem__, len(chosen))


def _streamed_splits(config: DataConfig, to_example: ToExample) -> tuple[Split, Split]:
    """Return a training half that is read as it is needed, and a held-out half in memory."""
    path = Path(config.path).expanduser()
    files = [path] if path.is_file() else _folder_files(config, config.train_split)
    if odd := [file for file in files if file.suffix != ".jsonl"]:
        raise ValueError(f"task.path must hold .jsonl files with task.stream=true, got {odd[0]}")
    if path.is_file() and not config.eval_path:
        raise ValueError(f"task.eval_path must say what to hold out of {path}, got nothing")
    held_rows = (
        read_file(Path(config.eval_path).expanduser())
        if config.eval_path
        else _read_folder(config, config.eval_split)
    )
    held = _examples(held_rows, to_example, config.bad_rows)
    if not held:
        raise ValueError(f"task.path must hold rows to evaluate on, got none from {path}")
    get = streamed(
        Lines(files),
        to_example,
        seed=config.seed,
        held={example.key for example in held},
        bad_rows=config.bad_rows,
    )
    return Split(SplitName.train, get, None), _eval_split(config, held)


def _examples(rows: Rows, to_example: ToExample, bad_rows: BadRows) -> list[Example]:
    """Return the examples of all rows; name those together that cannot be one."""
    examples, problems = [], []
    for i, row in enumerate(rows.rows):
        where = f"row {i} of {rows.source}"
        try:
            examples.append(replace(to_example(row, where), where=where))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        if bad_rows is BadRows.error:
            raise ValueError(f"{several(problems)}{DROP_HINT}")
        _log.warning("%d rows left out: %s", len(problems), several(problems))
    return examples


def several(problems: Sequence[str]) -> str:
    """Return the first few problems as one line, and how many more there are."""
    shown = "; ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def column(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Return `row[name]`; raise ValueError naming the row, the column and those that are there."""
    if name not in row:
        raise ValueError(f"{where} must have a column {name}, got {', '.join(map(str, row))}")
    return row[name]


def text_column(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return `row[name]`, which must be text with something in it."""
    value = column(row, name, where)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value == "" else type(value).__name__
        got = "only white space" if isinstance(value, str) and value else got
        raise ValueError(f"{where}: column {name} must be text, got {got}")
    return value


def json_value(value: Any, where: str) -> Any:
    """Return `value`, which JSON must be able to hold: rewards run in other processes."""
    try:
        checked = _json_value(value, where)
        json.dumps(checked, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{where} must not be nested so deep, got more than 900 levels") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be text that UTF-8 can hold, got {error.reason}") from error
    return checked


def _json_value(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_value(item, where) for key, item in value.items()}
    raise ValueError(f"{where} must be text, a number, or a list of these, got {value!r:.60}")


def _key(example: Example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt
    return json.dumps(example.prompt)


def _halves(config: DataConfig) -> tuple[Rows, Rows]:
    path = Path(config.path).expanduser()
    nothing = Rows(config.path, [])
    if config.eval_path:
        held_path = Path(config.eval_path).expanduser()
        if not held_path.is_file():
            raise ValueError(f"task.eval_path must be a file, got {config.eval_path}")
    if path.is_file():
        if not config.eval_path and not config.eval_fraction:
            raise ValueError(
                f"task.eval_path or task.eval_fraction must say what to hold out of {path}, "
                "got neither: a task needs an eval split"
            )
        return read_file(path), read_file(held_path) if config.eval_path else nothing
    if path.suffix in _SUFFIXES:
        raise ValueError(f"task.path must exist, got {path}")
    read = _read_folder if path.is_dir() else _read_hub
    train = read(config, config.train_split)
    if config.eval_path:
        return train, read_file(held_path)
    return train, nothing if config.eval_fraction else read(config, config.eval_split)


def read_file(path: Path) -> Rows:
    """Return the rows of a .jsonl, .json or .parquet file; an error names file and line."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"task.path must end in {', '.join(_SUFFIXES)}, got {path}")
    try:
        rows = _READERS[path.suffix](path)
    except (ValueError, OSError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deep" if deep else str(error) or type(error).__name__
        reason = reason.splitlines()[0]
        raise ValueError(f"task.path must be readable, got {path}: {reason}") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {i} of {path} must be an object, got {type(row).__name__}")
    return Rows(str(path), rows)


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    with path.open(encoding=_UTF8) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}") from error
    return rows


def _read_json(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding=_UTF8))
    if not isinstance(rows, list):
        raise ValueError(f"the top level must be a list, got {type(rows).__name__}")
    return rows


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet  # here: loading it takes longer than most tasks

    rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_READERS: Mapping[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _folder_files(config: DataConfig, split: str) -> list[Path]:
    folder = Path(config.path).expanduser()
    if config.subset and (folder / config.subset).is_dir():
        folder = folder / config.subset
    files = sorted(
        file
        for file in folder.rglob(f"{split}*")
        if file.suffix in _SUFFIXES and not file.stem[len(split) :][:1].isalnum()
    )
    if not files:
        purpose = "train on" if split == config.train_split else "evaluate on"
        raise ValueError(
            f"task.path must hold files {split}*.jsonl, .json or .parquet to {purpose}, "
            f"got {folder}"
        )
    return files


def _read_folder(config: DataConfig, split: str) -> Rows:
    parts = [read_file(file) for file in _folder_files(config, split)]
    if len(parts) == 1:
        return parts[0]
    return Rows(config.path, [row for part in parts for row in part.rows])


def _read_hub(config: DataConfig, split: str) -> Rows:
    where = f"{config.path} ({split})"
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"task.path must be a file or a folder, got {config.path}: data sets of the hub need "
            f"{how_to_install('datasets')}"
        ) from None
    try:
        data = datasets.load_dataset(config.path, config.subset or None, split=split)
    except Exception as error:  # the hub, the network and the file formats each have their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"task.path must be loadable, got {where}: {reason}") from error
    return Rows(where, data.to_list())
