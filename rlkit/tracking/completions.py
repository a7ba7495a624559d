"""Samples are kept as Parquet: a file a step or evaluation, a column a reward function."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from rlkit.tracking.base import Passage, SampleRow
from rlkit.tracking.files import write_atomic

_PREFIX = "rewards/"
_TASK = "task/"
_PASSAGES = "passages"
_ODD = re.compile(r"[^A-Za-z0-9_-]")


def step_path(run_dir: Path, step: int) -> Path:
    """Return the file that keeps the samples of a step."""
    return run_dir / "completions" / f"step-{step:06d}.parquet"


def eval_path(run_dir: Path, label: str, step: int) -> Path:
    """Return the file of an evaluation's samples; odd characters of `label` become dashes."""
    return run_dir / "completions" / f"eval-{_ODD.sub('-', label)}-{step:06d}.parquet"


def write_samples(path: Path, rows: Sequence[SampleRow], reward_names: Sequence[str]) -> None:
    """Write `rows` atomically.

    The raw value of reward function `f` is in column `rewards/f`. The task's column `c`, such as
    the right answer, is in `task/c`: text as it is, other values as JSON. Episodes have a column
    `passages`, a JSON list of [text, sampled, reward].

    Raises:
        TrackingError: the file could not be written; nothing is left of it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, integer, real = pa.string(), pa.int64(), pa.float64()
    columns = {
        "step": pa.array([r.step for r in rows], integer),
        "prompt_index": pa.array([r.prompt_index for r in rows], integer),
        "sample_index": pa.array([r.sample_index for r in rows], integer),
        "prompt": pa.array([encodable(r.prompt) for r in rows], text),
        "completion": pa.array([encodable(r.completion) for r in rows], text),
        "finish_reason": pa.array([str(r.finish_reason) for r in rows], text),
        "num_tokens": pa.array([r.num_tokens for r in rows], integer),
    }
    for k, name in enumerate(reward_names):
        columns[_PREFIX + name] = pa.array([float(r.components[k]) for r in rows], real)
    columns["reward"] = pa.array([r.reward for r in rows], real)
    columns["advantage"] = pa.array([r.advantage for r in rows], real)
    for name in dict.fromkeys(name for row in rows for name in row.columns):
        columns[_TASK + name] = pa.array([_shown(row.columns.get(name)) for row in rows], text)
    if any(row.passages for row in rows):
        columns[_PASSAGES] = pa.array([encodable(json.dumps(r.passages)) for r in rows], text)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_samples(path: Path) -> list[SampleRow]:
    """Return the rows that `write_samples` wrote, in order; values of `columns` are text."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rewards = [name for name in table.column_names if name.startswith(_PREFIX)]
    task_names = [n.removeprefix(_TASK) for n in table.column_names if n.startswith(_TASK)]
    rows = []
    for record in table.to_pylist():
        components = tuple(float(record.pop(name)) for name in rewards)
        task = {name: record.pop(_TASK + name) for name in task_names}
        passages = tuple(Passage(*p) for p in json.loads(record.pop(_PASSAGES, None) or "[]"))
        rows.append(SampleRow(components=components, columns=task, passages=passages, **record))
    return rows


def _shown(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else encodable(value)
    return json.dumps(value, default=str)


def encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
