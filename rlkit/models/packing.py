"""Pack the rows of a batch into one row without padding; what prompts share is in it once.

    prefix | rest of prompt 0 | completion 0 | completion 1 | rest of prompt 1 | ...

A segment attends to itself, causally, and to all of the segments that precede it in its own row of
the batch. A completion attends to its prompt's rest and to the prefix that all prompts begin with.
So every token sees what it would see in a row of its own, at the same position, and gradients flow
through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.types import RolloutBatch

_MIN_PREFIX = 16
"""Shorter prefixes, common to different prompts, are computed with each prompt."""
_NOTHING = torch.empty(0, dtype=torch.long)


class Span(NamedTuple):
    """A segment is adjacent tokens of a packed row."""

    start: int
    length: int


class Segment(NamedTuple):
    """Adjacent tokens that attend to each other causally, and to all of `before`."""

    own: Span
    before: tuple[Span, ...] = ()

    @property
    def num_keys(self) -> int:
        """Return the number of keys that the segment's last token attends to."""
        return self.own.length + sum(span.length for span in self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """This record holds the T tokens of a batch with N completion tokens."""

    ids: Tensor
    """(T,)"""
    positions: Tensor
    """(T,) place of each token in its own row of the batch."""
    lengths: Tensor
    """(T,) tokens of that row, its last one included; those of the longest row where tokens are
    shared. Some models rotate by them."""
    segments: tuple[Segment, ...]
    """Each token belongs to one segment; in order."""
    predictors: Tensor
    """(N,) the token from whose state each completion token is predicted, row by row."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(batch: RolloutBatch, *, share: bool) -> PackedRow:
    """Pack `batch`; with `share`, equal prompts and a common prefix occur once.

    The last token of a row predicts nothing and is left out.
    Raises ValueError when a prompt is empty: its first token has no state before it.
    """
    prompts = [tuple(row.tolist()) for row in _ragged(batch.prompt_ids, batch.prompt_mask)]
    completions = _ragged(batch.completion_ids, batch.completion_mask)
    if not all(prompts):
        raise ValueError("every prompt must have at least one token, got an empty one")
    users = Counter(prompts)
    rows = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    longest = max(rows, default=0)
    builder = _Builder()
    prefix = _common_prefix(list(users)) if share else ()
    common = (builder.add(prefix, position=0, before=(), row=longest),) if prefix else ()
    ends: dict[tuple[int, ...], tuple[Span, ...]] = {}
    for prompt, completion, own in zip(prompts, completions, rows, strict=True):
        rest = prompt[len(prefix) :]
        row = longest if share else own
        if not share or users[prompt] == 1:
            span = builder.add(rest, completion[:-1], position=len(prefix), before=common, row=row)
            builder.predict_from(span.start + len(rest) - 1, len(completion))
            continue
        if prompt not in ends:
            span = builder.add(rest, position=len(prefix), before=common, row=row)
            ends[prompt] = (*common, span)
        last = ends[prompt][-1]
        if len(completion):
            builder.predict_from(last.start + last.length - 1, 1)
        if len(completion) > 1:
            span = builder.add(completion[:-1], position=len(prompt), before=ends[prompt], row=row)
            builder.predict_from(span.start, span.length)
    return builder.build(batch.prompt_ids.device)


class _Builder:
    """A builder collects segments."""

    def __init__(self) -> None:
        self.length = 0
        self.ids: list[Tensor] = [_NOTHING]
        self.positions: list[Tensor] = [_NOTHING]
        self.lengths: list[Tensor] = [_NOTHING]
        self.segments: list[Segment] = []
        self.predictors: list[Tensor] = [_NOTHING]

    def add(
        self, *parts: Sequence[int] | Tensor, position: int, before: tuple[Span, ...], row: int
    ) -> Span:
        """Append a segment of `parts` whose first token is at `position` of a row of `row`."""
        span = Span(self.length, sum(map(len, parts)))
        self.length += span.length
        self.ids.extend(torch.as_tensor(part, dtype=torch.long) for part in parts)
        self.positions.append(torch.arange(position, position + span.length))
        self.lengths.append(torch.full((span.length,), row))
        self.segments.append(Segment(span, before))
        return span

    def predict_from(self, start: int, count: int) -> None:
        """Predict `count` completion tokens from the tokens from `start` on."""
        self.predictors.append(torch.arange(start, start + count))

    def build(self, device: torch.device) -> PackedRow:
        columns = (self.ids, self.positions, self.lengths, self.predictors)
        ids, positions, lengths, predictors = (torch.cat(c).to(device) for c in columns)
        return PackedRow(
            ids=ids,
            positions=positions,
            lengths=lengths,
            segments=tuple(self.segments),
            predictors=predictors,
        )


def _ragged(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the ids under `mask`, row by row, on the host."""
    ids, mask = ids.cpu(), mask.cpu()
    return torch.split(ids[mask], mask.sum(1).tolist())


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the beginning that different prompts share, if it is long; every prompt is longer."""
    if len(prompts) < 2:
        return ()
    # What the least and the greatest of sorted sequences share, all between them share as well.
    first, last = min(prompts), max(prompts)
    length = min(len(first), len(last))
    agree = next((i for i in range(length) if first[i] != last[i]), length)
    agree = min(agree, min(map(len, prompts)) - 1)
    return first[:agree] if agree >= _MIN_PREFIX else ()
