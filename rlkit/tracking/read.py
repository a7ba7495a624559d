"""This module reads a run folder: its metrics, and its evaluations with their samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlkit.tracking.base import EvalRecord, Interval, Measure
from rlkit.tracking.completions import eval_path, read_samples
from rlkit.tracking.files import number, read_lines

_EVAL_FIELDS = (
    "label", "step", "mean", "low", "high", "samples_per_prompt", "prompt_indices", "prompt_keys",
    "measure", "values", "success", "time/unix",
)  # fmt: skip
"""The keys of a line of `evals.jsonl` beside `EvalRecord.metrics`. The prompts' values are called
`success` where they are: older versions know no other name."""


def read_evals(run_dir: Path, *, samples: bool = True) -> list[EvalRecord]:
    """Return the evaluations of a run in order, with their `samples` where they were kept."""
    records = []
    for line in read_lines(run_dir / "evals.jsonl"):
        record = eval_record(line)
        path = eval_path(run_dir, record.label, record.step)
        if samples and path.exists():
            record = replace(record, samples=tuple(read_samples(path)))
        records.append(record)
    return records


def eval_record(line: Mapping[str, object]) -> EvalRecord:
    """Return the evaluation that a line of `evals.jsonl` records, without its samples.

    Raises KeyError, TypeError, ValueError or AssertionError when it records none.
    """
    indices, values = line["prompt_indices"], line.get("values", line.get("success"))
    keys = line.get("prompt_keys", [])
    assert isinstance(indices, list) and isinstance(values, list) and isinstance(keys, list)
    return EvalRecord(
        label=str(line["label"]),
        step=int(number(line["step"])),
        prompt_indices=tuple(indices),
        values=tuple(number(value) for value in values),
        measure=Measure(str(line.get("measure", Measure.success))),
        prompt_keys=tuple(map(str, keys)),
        samples_per_prompt=int(number(line["samples_per_prompt"])),
        interval=Interval(*(number(line[key]) for key in ("mean", "low", "high"))),
        metrics={k: number(v) for k, v in line.items() if k not in _EVAL_FIELDS},
    )


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the metrics of every step of a run, in order."""
    lines = read_lines(run_dir / "metrics.jsonl")
    return [{key: number(value) for key, value in line.items()} for line in lines]
