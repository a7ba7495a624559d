"""Files that others derive from a run may be cut or damaged: what is whole is kept, holes are said.

A run goes on from its checkpoint alone; `metrics.jsonl` and `evals.jsonl` must not stop it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlkit.tracking.base import EvalRecord
from rlkit.tracking.files import number
from rlkit.tracking.read import eval_record


class Salvaged(NamedTuple):
    """This record holds the lines of a file that can be used, and a count of those that cannot."""

    lines: list[dict[str, object]]
    num_broken: int


def whole_metrics(run_dir: Path) -> Salvaged:
    """Return the lines of `metrics.jsonl` that are records of a step."""
    records, broken = _objects(run_dir / "metrics.jsonl")
    whole = [record for record in records if _is_metrics(record)]
    return Salvaged(whole, broken + len(records) - len(whole))


def recorded_steps(run_dir: Path) -> dict[int, dict[str, object]]:
    """Return the lines of `metrics.jsonl` that are records of a step, by step."""
    return {int(number(line["step"])): line for line in whole_metrics(run_dir).lines}


def whole_evals(run_dir: Path) -> Salvaged:
    """Return the lines of `evals.jsonl` that are records of an evaluation."""
    records, broken = _objects(run_dir / "evals.jsonl")
    whole = [record for record in records if _evaluation(record) is not None]
    return Salvaged(whole, broken + len(records) - len(whole))


def holes(run_dir: Path, *, first_step: int, metrics_every: int, evaluate_every: int) -> list[str]:
    """Return lines about what the record of the steps before `first_step` lacks.

    Args:
        run_dir: The folder of the run.
        first_step: The step that a resumed run begins with, >= 0.
        metrics_every: Steps between two lines of metrics, >= 1.
        evaluate_every: Steps between two evaluations, >= 0; 0 = only before and after.

    Returns:
        At most two lines for each file.
    """
    metrics, evals = whole_metrics(run_dir), whole_evals(run_dir)
    found = {int(number(line["step"])) for line in metrics.lines}
    steps = [step for step in range(0, first_step, metrics_every) if step not in found]
    # The evaluation at `first_step` itself is made again when it is missing.
    due = range(evaluate_every, first_step, evaluate_every) if evaluate_every else range(0)
    known = {str(line["label"]) for line in evals.lines}
    wanted = [*(["before"] if first_step else []), *(f"step {step}" for step in due)]
    labels = [label for label in wanted if label not in known]
    return [
        *_say("metrics.jsonl", metrics.num_broken, "steps", _ranges(steps)),
        *_say("evals.jsonl", evals.num_broken, "evaluations", labels),
    ]


def _say(name: str, num_broken: int, what: str, missing: Sequence[str]) -> list[str]:
    lines = []
    if num_broken:
        lines.append(f"{name}: {num_broken} lines cannot be read and are dropped; the run goes on")
    if missing:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        lines.append(f"{name} has a hole, it lacks {what} {shown}; the run goes on")
    return lines


def _ranges(steps: Sequence[int]) -> list[str]:
    """Return `1-3`, `7` for 1, 2, 3, 7."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


def _objects(path: Path) -> tuple[list[dict[str, object]], int]:
    """Return the JSON objects of a file, and the number of lines that are none.

    The rest after the last line break is no line: a crash cut it off.
    """
    try:
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError:
        return [], 0
    records, broken = [], 0
    for line in complete.split(b"\n") if complete else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken += 1
    return records, broken


def _is_metrics(record: Mapping[str, object]) -> bool:
    try:
        return number(record["step"]) >= 0 and all(number(v) is not None for v in record.values())
    except (KeyError, TypeError, ValueError):
        return False


def _evaluation(record: Mapping[str, object]) -> EvalRecord | None:
    try:
        return eval_record(record)
    except (KeyError, TypeError, ValueError, AssertionError):
        return None
