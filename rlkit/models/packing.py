"""Pack the rows of a batch into one row without padding; what prompts share is in it once.

    prefix | rest of prompt 0 | completion 0 | completion 1 | rest of prompt 1 | ...

A segment attends to itself, causally, and to all of the segments that precede it in its own row of
the batch. A completion attends to its prompt's rest and to the prefix that all prompts begin with.
So every token sees what it would see in a row of its own, at the same position, and gradients flow
through. A row whose context begins afresh on the way is several rows here, one for each context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlkit.types import RolloutBatch

_MIN_PREFIX = 16
"""Shorter prefixes, common to different prompts, are computed with each prompt."""
_NOTHING = np.empty(0, dtype=np.int64)


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
    """This record holds the T tokens of a batch with N sampled tokens."""

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
    """(N,) the token from whose state each sampled token is predicted, row by row."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(batch: RolloutBatch, *, share: bool) -> PackedRow:
    """Pack `batch`; with `share`, equal prompts and a common prefix occur once.

    Tokens of an environment are there as context; only sampled tokens have a predictor. The last
    token of a row predicts nothing and is left out.
    Raises ValueError when a prompt is empty: its first token has no state before it.
    """
    prompts = [tuple(row.tolist()) for row in _ragged(batch.prompt_ids, batch.prompt_mask)]
    completions, sampled = _contexts(batch)
    if not all(prompts):
        raise ValueError("every prompt must have at least one token, got an empty one")
    users = Counter(prompts)
    rows = [len(p) + len(c[0]) for p, c in zip(prompts, completions, strict=True)]
    longest = max([*rows, *(len(part) for parts in completions for part in parts[1:])], default=0)
    builder = _Builder()
    prefix = _common_prefix(list(users)) if share else ()
    common = (builder.add(prefix, position=0, before=(), row=longest),) if prefix else ()
    ends: dict[tuple[int, ...], tuple[Span, ...]] = {}
    for prompt, parts, masks, own in zip(prompts, completions, sampled, rows, strict=True):
        completion, wanted = parts[0], masks[0]
        rest = prompt[len(prefix) :]
        row = longest if share else own
        if not share or users[prompt] == 1:
            span = builder.add(rest, completion[:-1], position=len(prefix), before=common, row=row)
            builder.predict_from(span.start + len(rest) - 1, wanted)
        else:
            if prompt not in ends:
                span = builder.add(rest, position=len(prefix), before=common, row=row)
                ends[prompt] = (*common, span)
            last = ends[prompt][-1]
            builder.predict_from(last.start + last.length - 1, wanted[:1])
            if len(completion) > 1:
                before = ends[prompt]
                span = builder.add(completion[:-1], position=len(prompt), before=before, row=row)
                builder.predict_from(span.start, wanted[1:])
        for part, flags in zip(parts[1:], masks[1:], strict=True):
            # A context of its own: it holds all that its tokens see, from position 0 on.
            row = longest if share else len(part)
            span = builder.add(part[:-1], position=0, before=(), row=row)
            builder.predict_from(span.start, flags[1:])
    return builder.build(batch.prompt_ids.device)


def context_lengths(batch: RolloutBatch) -> Tensor:
    """Return the number of tokens of each context of a batch, those of the prompts included."""
    lengths = batch.prompt_mask.sum(1) + batch.exists.sum(1)
    if batch.restarts is None:
        return lengths
    prompts = batch.prompt_mask.sum(1).tolist()
    parts, _ = _contexts(batch)
    found = [[n + len(p[0]), *map(len, p[1:])] for n, p in zip(prompts, parts, strict=True)]
    return torch.tensor([n for row in found for n in row], device=lengths.device)


def ranges(spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return the numbers start, start + 1 and so on of each (start, count), span after span.

    A call of torch for each of some hundred spans would take longer than a layer.
    """
    table = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    starts, counts = table[:, 0], table[:, 1]
    begins = np.cumsum(counts) - counts
    return torch.from_numpy(np.arange(counts.sum()) + np.repeat(starts - begins, counts))


def _contexts(batch: RolloutBatch) -> tuple[list[tuple[Tensor, ...]], ...]:
    """Return each row's tokens, and which of them were sampled, cut where a context begins."""
    columns = [_ragged(c, batch.exists) for c in (batch.completion_ids, batch.completion_mask)]
    if batch.restarts is None:
        return tuple([(row,) for row in column] for column in columns)
    places = [flags.nonzero()[:, 0].tolist() for flags in _ragged(batch.restarts, batch.exists)]
    return tuple(
        [torch.tensor_split(row, cuts) for row, cuts in zip(column, places, strict=True)]
        for column in columns
    )


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Return (start, count) of each run of True; nearly always it is one run of all."""
    found = np.asarray(flags, dtype=np.int8)
    edges = np.flatnonzero(np.diff(found, prepend=0, append=0)).tolist()
    return [(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True)]


class _Builder:
    """A builder collects segments."""

    def __init__(self) -> None:
        self.length = 0
        self.ids: list[Any] = [_NOTHING]
        self.positions: list[tuple[int, int]] = []
        self.rows: list[int] = []
        self.segments: list[Segment] = []
        self.predictors: list[tuple[int, int]] = []

    def add(
        self, *parts: Sequence[int] | Tensor, position: int, before: tuple[Span, ...], row: int
    ) -> Span:
        """Append a segment of `parts` whose first token is at `position` of a row of `row`."""
        span = Span(self.length, sum(map(len, parts)))
        self.length += span.length
        self.ids.extend(parts)
        self.positions.append((position, span.length))
        self.rows.append(row)
        self.segments.append(Segment(span, before))
        return span

    def predict_from(self, start: int, sampled: Tensor) -> None:
        """Predict those of the next tokens that are `sampled`, each from the token before it."""
        self.predictors += [(start + first, count) for first, count in _runs(sampled)]

    def build(self, device: torch.device) -> PackedRow:
        ids = torch.from_numpy(np.concatenate([np.asarray(p, dtype=np.int64) for p in self.ids]))
        counts = [length for _, length in self.positions]
        lengths = torch.from_numpy(np.repeat(np.asarray(self.rows, dtype=np.int64), counts))
        return PackedRow(
            ids=ids.to(device),
            positions=ranges(self.positions).to(device),
            lengths=lengths.to(device),
            segments=tuple(self.segments),
            predictors=ranges(self.predictors).to(device),
        )


def _ragged(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the entries under `mask`, row by row, on the host."""
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
