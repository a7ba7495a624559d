"""This module reads preferences: rows with a prompt, a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.tasks.data import read_file


class PreferencePair(NamedTuple):
    """This is one preference."""

    prompt: str | tuple[Mapping[str, object], ...]
    """Text, or the turns of a conversation before the answer."""
    chosen: str
    rejected: str


def read_pairs(key: str, path: Path) -> list[PreferencePair]:
    """Return the pairs of a .jsonl, .json or .parquet file.

    Answers are texts, or conversations that end with the answer, as in TRL's data sets. A row
    without `prompt` has the turns that both conversations share.

    Raises ValueError, one line that names `key`, the row and the column.
    """
    if not path.is_file():
        raise ValueError(f"{key} must be a file of preferences, got {path}")
    try:
        rows = read_file(path).rows
    except ValueError as error:
        raise ValueError(str(error).replace("task.path", key)) from error
    pairs = [_pair(row, f"{key}: row {i} of {path}") for i, row in enumerate(rows)]
    if not pairs:
        raise ValueError(f"{key} must hold at least one pair, got none in {path}")
    return pairs


def _pair(row: Mapping[str, Any], where: str) -> PreferencePair:
    for column in ("chosen", "rejected"):
        if column not in row:
            names = ", ".join(map(str, row))
            raise ValueError(f"{where} must have a column {column}, got {names}")
    before, chosen = _answer(row["chosen"], f"{where}: column chosen")
    other, rejected = _answer(row["rejected"], f"{where}: column rejected")
    if chosen == rejected:
        raise ValueError(f"{where}: chosen and rejected must differ, got {chosen!r:.60} twice")
    prompt = row.get("prompt", before)
    if "prompt" not in row and (not before or before != other):
        raise ValueError(f"{where} must have a column prompt, got {', '.join(map(str, row))}")
    if isinstance(prompt, list | tuple) and _are_turns(prompt):
        return PreferencePair(tuple(prompt), chosen, rejected)
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: column prompt must be text or messages, got {prompt!r:.60}")
    return PreferencePair(prompt, chosen, rejected)


def _answer(value: object, where: str) -> tuple[tuple[Mapping[str, object], ...], str]:
    """Return the turns before an answer, and its text."""
    if isinstance(value, str):
        return (), value
    if isinstance(value, list | tuple) and value and _are_turns(value):
        return tuple(value[:-1]), str(value[-1]["content"])
    raise ValueError(f"{where} must be text or messages, got {value!r:.60}")


def _are_turns(value: Sequence[Any]) -> bool:
    return all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in value)
