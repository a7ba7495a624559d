"""Decode with transformers and guesses: rows advance by one token or by several in one pass.

The cache is shared by all rows, so each pass adds as many columns to it as it has tokens a row. A
row whose guesses were wrong has columns that it must not see: its mask leaves them out, and its
positions do not count them. Now and then the columns that are in use move together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkit.generation.batching import SamplingRow
from rlkit.generation.cache import keep_columns, take_columns, take_rows
from rlkit.generation.sampling import Draw, sample
from rlkit.generation.speculation import (
    DraftHistory,
    DraftIndex,
    DraftSource,
    SpeculationOptions,
    accepted_drafts,
    spare_columns,
)
from rlkit.models.compat import Cache
from rlkit.types import SamplingConfig


class Pass(NamedTuple):
    """The tokens of one forward pass over N rows: R more columns of the cache."""

    input_ids: Int[Tensor, "N R"]
    positions: Int[Tensor, "N R"]
    mask: Bool[Tensor, "N L"]
    """The columns that a row sees, those of the pass included; it is causal besides."""


Forward = Callable[[Cache, Pass], "Float[Tensor, 'N R V']"]
"""Appends the columns of a pass to the cache, and returns the logits behind each of its tokens."""
Extend = Callable[[SamplingRow, list[int], list[float]], None]
"""Appends tokens and logps to a row, up to and including the one that ends it."""


class Drafts:
    """These are the guesses for the rows of one call."""

    def __init__(
        self, rows: Sequence[SamplingRow], options: SpeculationOptions, history: DraftHistory
    ) -> None:
        """Search the prompts, completions and `history` of `rows` as `options` say."""
        self._indices: dict[object, DraftIndex] = {}
        self._texts: dict[int, list[int]] = {}
        self._options = options
        for row in rows:
            key = self._key(row)
            index = self._indices.get(key)
            if index is None:
                index = self._indices[key] = DraftIndex(options)
                if options.source is DraftSource.history:
                    for completion in history.texts(row.prompt.ids):
                        index.grow(list(row.prompt.ids[-options.longest :]), completion)
            text: list[int] = []
            self._texts[id(row)] = text
            index.grow(text, row.prompt.ids)
            index.grow(text, row.ids)

    def take(self, row: SamplingRow, num_old: int) -> None:
        """Take note of the tokens of `row` from number `num_old` on."""
        self._indices[self._key(row)].grow(self._texts[id(row)], row.ids[num_old:])

    def guess(self, row: SamplingRow, most: int) -> list[int]:
        """Return up to `most` guesses of the next tokens of `row`."""
        return self._indices[self._key(row)].draft(self._texts[id(row)], most)

    def _key(self, row: SamplingRow) -> object:
        return id(row) if self._options.source is DraftSource.own else row.prompt.ids


@dataclass(slots=True, kw_only=True)
class DraftedRows:
    """Rows under way: all but the last token of each is in the cache."""

    rows: list[SamplingRow]
    cache: Cache
    mask: Bool[Tensor, "N L"]
    """The columns of the cache that hold a token of the row."""
    seeds: Int[Tensor, " N"]
    sampling: SamplingConfig
    drafts: Drafts
    forward: Forward
    extend: Extend

    def step(self) -> None:
        """Guess, compute all guesses in one pass, keep what is right, and drop rows that end."""
        room = [self._most(row) - len(row.ids) - 1 for row in self.rows]
        guesses = [self.drafts.guess(row, n) for row, n in zip(self.rows, room, strict=True)]
        draws = self._draw(guesses)
        lengths = torch.tensor([len(guess) for guess in guesses], device=self.mask.device)
        width = draws.ids.shape[1]
        drafts = self._padded(guesses, width - 1)
        accepted = accepted_drafts(draws.ids, drafts, lengths)
        ids, logps = draws.ids.tolist(), draws.logps.tolist()
        for row, guess, count, new, its_logps in zip(
            self.rows, guesses, accepted.tolist(), ids, logps, strict=True
        ):
            num_old = len(row.ids)
            self.extend(row, new[: count + 1], its_logps[: count + 1])
            self.drafts.take(row, num_old)
            row.drafted += len(guess)
            # A completion may end within its guesses: those behind its end were of no use.
            row.accepted += max(0, len(row.ids) - num_old - 1)
        # The row's last token and the guesses that were right stay; the rest is never seen again.
        columns = torch.arange(width, device=self.mask.device)
        self.mask[:, -width:] = columns <= accepted[:, None]
        self._drop()

    def _draw(self, guesses: Sequence[Sequence[int]]) -> Draw:
        """Return the sampler's token behind the last one of each row and behind each guess."""
        device, width = self.mask.device, 1 + max(map(len, guesses))
        last = torch.tensor([[row.ids[-1]] for row in self.rows], device=device)
        numbers = torch.arange(width, device=device)
        place = torch.tensor([len(row.ids) for row in self.rows], device=device)
        start = torch.tensor([len(row.prompt.ids) for row in self.rows], device=device)
        self.mask = torch.nn.functional.pad(self.mask, (0, width), value=True)
        logits = self.forward(
            self.cache,
            Pass(
                torch.cat([last, self._padded(guesses, width - 1)], dim=1),
                (start + place - 1)[:, None] + numbers,
                self.mask,
            ),
        )
        drawn = sample(
            logits.flatten(0, 1),
            self.seeds.repeat_interleave(width),
            (place[:, None] + numbers).flatten(),
            self.sampling,
        )
        return Draw(drawn.ids.view(-1, width), drawn.logps.view(-1, width))

    def _padded(self, guesses: Sequence[Sequence[int]], width: int) -> Int[Tensor, "N K"]:
        padded = [[*guess, *[0] * (width - len(guess))] for guess in guesses]
        shape = (len(guesses), width)
        return torch.tensor(padded, dtype=torch.long, device=self.mask.device).view(shape)

    def _most(self, row: SamplingRow) -> int:
        return row.most_tokens(self.sampling.max_completion_length)

    def _drop(self) -> None:
        """Drop rows that have ended, and columns that no row uses."""
        active = [n for n, row in enumerate(self.rows) if row.finish_reason is None]
        if not active:
            self.rows = []
            return
        if len(active) < len(self.rows):
            keep = torch.tensor(active, device=self.mask.device)
            take_rows(self.cache, keep)
            self.rows = [self.rows[n] for n in active]
            self.seeds, self.mask = self.seeds[keep], self.mask[keep]
        used = int(self.mask.any(dim=0).nonzero()[-1]) + 1
        if used < self.mask.shape[1]:
            keep_columns(self.cache, used)
            self.mask = self.mask[:, :used]
        longest = int(self.mask.sum(dim=1).max())
        if self.mask.shape[1] > longest + spare_columns(longest):
            # A stable sort moves the columns in use to the right, in their order.
            order = self.mask.int().argsort(dim=1, stable=True)[:, -longest:]
            take_columns(self.cache, order)
            self.mask = self.mask.gather(1, order)
