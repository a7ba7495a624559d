"""Two runs of one configuration are compared step by step, to say where they part first.

Compared is what both have on record, in the order in which a run makes it. An evaluation comes
first, then the tokens that were sampled, their logps and rewards, the metrics, and the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.tracking.base import SampleRow
from rlkit.tracking.completions import eval_path, read_samples, step_path
from rlkit.tracking.files import number
from rlkit.tracking.parting import metrics_part, place_of, rows_part
from rlkit.tracking.salvage import whole_evals, whole_metrics
from rlkit.training import rollout_files
from rlkit.training.checkpoint import is_complete, step_folder
from rlkit.training.state_file import TENSOR_FILES, CheckpointError, read_state
from rlkit.types import RolloutBatch

_HOST = torch.device("cpu")
_Line = Mapping[str, object]


class RunComparison(NamedTuple):
    """This record says how far two runs are the same."""

    steps: int
    """Steps that both have on record and that were found equal."""
    step: int | None
    """The step in which they part; None = nowhere."""
    what: str
    """What differs first, in words; empty = nothing."""


def first_difference(run: Path, other: Path) -> RunComparison:
    """Compare two runs from their first step on; times, memory and speed do not count.

    A token is named where both runs keep the step's rollouts, which are those after a checkpoint
    that still exists. Elsewhere the place is a character of the completion.
    """
    ours, theirs = (_by_step(folder) for folder in (run, other))
    evals, their_evals = (_evaluations(folder) for folder in (run, other))
    steps = sorted(ours.keys() & theirs.keys())
    equal = 0
    for step in sorted({*steps, *(s for _, s in evals.keys() & their_evals.keys())}):
        for key in sorted(key for key in evals.keys() & their_evals.keys() if key[1] == step):
            if what := _evaluation_parts(run, other, key, evals[key], their_evals[key]):
                return RunComparison(equal, step, what)
        if what := _weights_part(run, other, step):
            return RunComparison(equal, step, what)
        if step not in ours or step not in theirs:
            continue
        if what := _step_parts(run, other, step) or metrics_part(ours[step], theirs[step]):
            return RunComparison(equal, step, what)
        equal += 1
    return RunComparison(equal, None, "")


def _by_step(run: Path) -> dict[int, _Line]:
    return {int(number(line["step"])): line for line in whole_metrics(run).lines}


def _evaluations(run: Path) -> dict[tuple[str, int], _Line]:
    return {(str(x["label"]), int(number(x["step"]))): x for x in whole_evals(run).lines}


def _evaluation_parts(
    run: Path, other: Path, key: tuple[str, int], ours: _Line, theirs: _Line
) -> str:
    rows, others = (_rows(eval_path(folder, *key)) for folder in (run, other))
    what = (rows_part(rows, others) if rows and others else "") or metrics_part(ours, theirs)
    return f"evaluation {key[0]!r}: {what}" if what else ""


def _step_parts(run: Path, other: Path, step: int) -> str:
    rows, others = (_rows(step_path(folder, step)) for folder in (run, other))
    return _tokens_part(run, other, step, rows) or (
        rows_part(rows, others) if rows and others else ""
    )


def _rows(path: Path) -> list[SampleRow]:
    try:
        return read_samples(path)
    except (OSError, ValueError, TypeError, KeyError):  # not kept, or damaged
        return []


def _tokens_part(run: Path, other: Path, step: int, rows: Sequence[SampleRow]) -> str:
    """Compare the saved rollouts of a step; empty when they are equal, or one is not there."""
    try:
        ours, theirs = (rollout_files.load(r, step, device=_HOST).batch for r in (run, other))
    except CheckpointError:
        return ""
    if len(ours) != len(theirs):
        return f"{len(ours)} rows were learnt from, not {len(theirs)}"
    for what in (_first_token, _first_logp):
        if found := what(ours, theirs):
            row, said = found
            place = place_of(rows[row]) if len(rows) == len(ours) else f"row {row}"
            return f"{place}, {said}"
    return ""


def _first_token(ours: RolloutBatch, theirs: RolloutBatch) -> tuple[int, str] | None:
    for row in range(len(ours)):
        a, b = (_sampled(batch.completion_ids, batch, row) for batch in (ours, theirs))
        for place, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return row, f"token {place}: {int(x)}, not {int(y)}{_logps(ours, theirs, row)}"
        if len(a) != len(b):
            return row, f"token {min(len(a), len(b))}: the completions have other lengths"
    return None


def _first_logp(ours: RolloutBatch, theirs: RolloutBatch) -> tuple[int, str] | None:
    for row in range(len(ours)):
        a, b = (_sampled(batch.sampling_logps, batch, row) for batch in (ours, theirs))
        places = (a != b).nonzero()
        if len(places):
            place = int(places[0])
            off = float((a[place].double() - b[place].double()).abs())
            return row, f"token {place}: the tokens are the same, its logp is off by {off:.1e} nats"
    return None


def _logps(ours: RolloutBatch, theirs: RolloutBatch, row: int) -> str:
    """Say how far the logps of the tokens before the first other one are apart."""
    a, b = (_sampled(batch.completion_ids, batch, row) for batch in (ours, theirs))
    length = min(len(a), len(b))
    same = int((a[:length] == b[:length]).long().cumprod(0).sum())
    if not same:
        return ""
    p, q = (_sampled(x.sampling_logps, x, row)[:same].double() for x in (ours, theirs))
    return f"; the logps before it are off by at most {float((p - q).abs().max()):.1e} nats"


def _sampled(values: Tensor, batch: RolloutBatch, row: int) -> Tensor:
    return values[row][batch.completion_mask[row]]


def _weights_part(run: Path, other: Path, step: int) -> str:
    """Compare the checkpoints of `step` by their hashes, where both runs have one."""
    folders = [step_folder(folder / "checkpoints", step) for folder in (run, other)]
    if not all(is_complete(folder) for folder in folders):
        return ""
    try:
        ours, theirs = (read_state(folder)[1] for folder in folders)
    except CheckpointError:
        return ""
    names = [name for name in TENSOR_FILES if ours.get(name) != theirs.get(name)]
    return f"the weights or moments before it differ: {', '.join(names)}" if names else ""
