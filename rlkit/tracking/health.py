"""This module says once in words that a run learns nothing, and counts such signs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from rlkit.tracking.base import SampleRow, StepRecord


class ProblemKind(StrEnum):
    """A step can teach nothing in these ways."""

    zero_std = "more than half of the groups had equal rewards"
    cancelling = "more than half of the groups had rewards that cancel"
    truncated = "more than half of the completions reached the length limit"
    unrewarded = "no sample had a reward, so the step was skipped"
    missing = "a reward function gave no value for any sample"
    non_finite = "the gradient norm was not finite"
    place = "a judge preferred another answer in the other order for more than half of the pairs"


class Health:
    """This object watches step records and says each kind of trouble when it is first met."""

    def __init__(self, reward_names: Sequence[str]) -> None:
        self._names = tuple(reward_names)
        self._steps = 0
        self._counts: Counter[ProblemKind] = Counter()

    def observe(self, record: StepRecord) -> list[str]:
        """Return warnings to print now: those of a kind met for the first time."""
        self._steps += 1
        found = dict(self._troubles(record))
        fresh = [text for kind, text in found.items() if not self._counts[kind]]
        self._counts.update(found.keys())
        return [f"step {record.step}: {text}" for text in fresh]

    def totals(self) -> list[str]:
        """Return one line for each kind met, with the number of steps."""
        return [f"{kind.value} in {n} of {self._steps} steps" for kind, n in self._counts.items()]

    def _troubles(self, record: StepRecord) -> list[tuple[ProblemKind, str]]:
        found: list[tuple[ProblemKind, str]] = []
        groups = _groups(record.samples)
        if record.samples and all(math.isnan(row.reward) for row in record.samples):
            found.append((ProblemKind.unrewarded, "no sample has a reward, so the step is skipped"))
            groups = []
        flat = [group for group in groups if len({row.reward for row in group}) == 1]
        varying = [varying for group in flat if (varying := self._varying(group))]
        if len(groups) and len(flat) > len(groups) / 2:
            text = (
                f"{len(flat)} of {len(groups)} groups have equal rewards for all their samples, "
                f"so they give no policy gradient"
            )
            if varying:
                names = ", ".join(n for n in self._names if any(n in v for v in varying))
                text += (
                    f"; in {len(varying)} of them the reward functions {names} do differ "
                    f"but cancel in the weighted sum"
                )
                found.append((ProblemKind.cancelling, text))
            else:
                found.append((ProblemKind.zero_std, text))
        cut = sum(row.finish_reason == "length" for row in record.samples)
        if cut > len(record.samples) / 2:
            text = f"{cut} of {len(record.samples)} completions were cut at the length limit"
            found.append((ProblemKind.truncated, text))
        for k, name in enumerate(self._names):
            if record.samples and all(math.isnan(row.components[k]) for row in record.samples):
                found.append(
                    (ProblemKind.missing, f"reward function {name} gave no value for any sample")
                )
                break
        norm = record.metrics.get("grad_norm", 0.0)
        if not math.isfinite(norm):
            found.append((ProblemKind.non_finite, f"the gradient norm is {norm}"))
        return found + self._places(record)

    def _places(self, record: StepRecord) -> list[tuple[ProblemKind, str]]:
        """Return a warning when a judge decides by the place of an answer, not by the answer."""
        for name in self._names:
            flipped = record.metrics.get(f"rewards/{name}/flipped", 0.0)
            if flipped > 0.5:
                slot = record.metrics.get(f"rewards/{name}/first_slot", math.nan)
                text = (
                    f"judge {name} prefers another answer in the other order for {flipped:.0%} of "
                    f"the pairs (slot A has {slot:.0%} of its probability): mostly noise is left"
                )
                return [(ProblemKind.place, text)]
        return []

    def _varying(self, group: Sequence[SampleRow]) -> set[str]:
        """Return names of the reward functions whose values differ within the group."""
        columns = zip(*(row.components for row in group), strict=True)
        return {
            name
            for name, values in zip(self._names, columns, strict=True)
            if len({value for value in values if not math.isnan(value)}) > 1
        }


def _groups(rows: Sequence[SampleRow]) -> list[list[SampleRow]]:
    """Return adjacent rows of one prompt; a prompt drawn twice in a step makes two groups."""
    groups: list[list[SampleRow]] = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        fresh = last is None or row.prompt_index != last.prompt_index
        if fresh or (last is not None and row.sample_index <= last.sample_index):
            groups.append([])
        groups[-1].append(row)
    return groups
