"""Two records of one step are compared: what differs first, in the order in which a step makes it.

On a CPU a resumed run repeats itself bit for bit. On a GPU an engine may add up in another order.
Steps that a killed run had recorded after its newest checkpoint are made again when it goes on.
`Repeated` says whether they came out the same, and where they part if they did not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from rlkit.tracking.base import Level, SampleRow, StepRecord
from rlkit.tracking.completions import encodable, read_samples, step_path
from rlkit.tracking.files import comparable, encode, number
from rlkit.tracking.salvage import whole_metrics

_MOST_STEPS = 10
"""Steps of which the samples are kept: who parts does so early."""
_FIELDS = ("finish_reason", "num_tokens", "components", "reward", "advantage")


def place_of(row: SampleRow) -> str:
    """Return the words for the prompt and the sample of a row."""
    return f"prompt {row.prompt_index}, sample {row.sample_index}"


def rows_part(ours: Sequence[SampleRow], theirs: Sequence[SampleRow]) -> str:
    """Return where two lists of a step's samples part first; empty = nowhere.

    Completions come before rewards, as a reward depends on them. Texts are not quoted.
    """
    places, others = ([place_of(row) for row in rows] for rows in (ours, theirs))
    if places != others:
        return f"the samples are of other prompts: {_first(places, others)}"
    for one, other in zip(ours, theirs, strict=True):
        texts = [encodable(one.completion), encodable(other.completion)]
        if texts[0] != texts[1]:
            pairs = zip(*texts, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            return f"{place_of(one)}: the completions part after {same} characters"
    for one, other in zip(ours, theirs, strict=True):
        for name in _FIELDS:
            a, b = getattr(one, name), getattr(other, name)
            if not _same(a, b):
                return f"{place_of(one)}: the completion is the same, {name} is {a}, not {b}"
    return ""


def metrics_part(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """Return which metrics of two lines of a record differ; empty = none but times and memory."""
    a, b = (json.loads(encode(comparable(line))) for line in (ours, theirs))
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    if not names:
        return ""
    more = f", and {len(names) - 1} further metrics" if len(names) > 1 else ""
    return f"{names[0]} is {a.get(names[0])}, not {b.get(names[0])}{more}"


class Repeated:
    """This object compares the steps that come again with what a run had recorded of them."""

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        """Read what is on record from `first_step` on; nothing when a run begins anew."""
        lines = whole_metrics(run_dir).lines if first_step else []
        steps = {int(number(line["step"])): line for line in lines}
        self._lines = {step: line for step, line in steps.items() if step >= first_step}
        early = sorted(self._lines)[:_MOST_STEPS]
        self._rows = {step: _rows(step_path(run_dir, step)) for step in early}
        self._equal = list[int]()

    def observe(self, record: StepRecord) -> list[tuple[Level, str]]:
        """Return what to say of a step: once, where it parts, or once, that all were the same."""
        line = self._lines.pop(record.step, None)
        if line is None:
            return []
        known = self._rows.pop(record.step, [])
        what = rows_part(record.samples, known) if known and record.samples else ""
        what = what or metrics_part({**record.metrics, "step": record.step}, line)
        if what:
            self._lines.clear()
            return [(Level.warning, f"step {record.step} came out otherwise than before: {what}")]
        self._equal.append(record.step)
        if self._lines:
            return []
        steps = f"{self._equal[0]} to {record.step}" if len(self._equal) > 1 else f"{record.step}"
        word = "steps" if len(self._equal) > 1 else "step"
        return [(Level.info, f"{word} {steps} came out as before the interruption, bit for bit")]


def _rows(path: Path) -> list[SampleRow]:
    try:
        return read_samples(path)
    except (OSError, ValueError, TypeError, KeyError):  # damaged or not kept
        return []


def _same(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (one, other))
    return both_nan or one == other


def _first(ours: Sequence[str], theirs: Sequence[str]) -> str:
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            return f"{a}, not {b}"
    return f"{len(ours)} samples, not {len(theirs)}"
