"""This module reads completions from before and after training, on the same held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.report.arms import Arm
from rlkit.report.job import JobRecord
from rlkit.report.text import fixed
from rlkit.tracking import EvalRecord, SampleRow
from rlkit.tracking.base import Passage
from rlkit.tracking.completions import eval_path, kept_samples
from rlkit.tracking.summary import clip, tail

_NUM_PROMPTS = 3
_MAX_ARMS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """This record is one completion as it is shown."""

    text: str
    caption: str
    passages: tuple[Passage, ...] = ()
    """The episode turn by turn; empty where there is one turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionExample:
    """This record is one held-out prompt and its first sample before and after training."""

    prompt: str
    index: int
    before: Text
    after: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """A gallery has one arm's examples, of its first completed seed, not picked for their looks."""

    arm: Arm
    seed: int
    examples: tuple[CompletionExample, ...]

    @property
    def episodes(self) -> bool:
        """Return whether an environment speaks in one of them."""
        return any(t.passages for e in self.examples for t in (e.before, e.after))


def galleries(arms: Sequence[Arm]) -> list[Gallery]:
    """Return the first three held-out prompts for each arm whose completions were kept."""
    found = []
    for arm in arms[:_MAX_ARMS]:
        for seed, job in sorted(arm.done.items()):
            examples = _examples(job)
            if examples:
                found.append(Gallery(arm=arm, seed=seed, examples=examples))
                break
    return found


def _examples(job: JobRecord) -> tuple[CompletionExample, ...]:
    if len(job.evals) < 2:
        return ()
    before, after = (_first_samples(job.folder, job.evals[i]) for i in (0, -1))
    shared = [index for index in before if index in after][:_NUM_PROMPTS]
    return tuple(
        CompletionExample(
            prompt=tail(before[index].prompt),
            index=index,
            before=_text(before[index]),
            after=_text(after[index]),
        )
        for index in shared
    )


def _first_samples(folder: Path, record: EvalRecord) -> Mapping[int, SampleRow]:
    found: dict[int, SampleRow] = {}
    for row in kept_samples(eval_path(folder, record.label, record.step)):
        found.setdefault(row.prompt_index, row)
    return found


def _text(row: SampleRow) -> Text:
    cut = ", cut at the length limit" if row.finish_reason == "length" else ""
    reward = "no reward" if math.isnan(row.reward) else f"reward {fixed(row.reward, digits=2)}"
    return Text(
        text=clip(row.completion),
        caption=f"{reward}, {row.num_tokens} tokens{cut}",
        passages=tuple(p._replace(text=clip(p.text.strip())) for p in row.passages),
    )
