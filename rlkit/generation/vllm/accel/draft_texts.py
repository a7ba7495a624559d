"""The texts on the card in which guesses are looked up: one row of a table for each completion."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlkit.generation.speculation import DraftSource, SpeculationOptions

_MOST_SOURCES = 16
"""Texts that are searched for one row; those of more completions of its prompt wait in vain."""
_HISTORY_BYTES = 2**28
_MOST_TEXTS = 2**16


class DraftedBatch(NamedTuple):
    """These are the rows of a burst on the card; all int32 and in the order of the burst."""

    states: Tensor
    """(rows,) the places of the rows in vLLM's states."""
    texts: Tensor
    """(rows,) their own texts."""
    limits: Tensor
    """(rows,) most tokens of a text."""
    sources: Tensor
    """(rows, S) the texts that are searched, the row's own first; -1 is none."""


class DraftTexts:
    """It has a text for each completion under way, and keeps those that have ended for a while.

    A text's place is given away when there is no free one, the one used longest ago first.
    """

    def __init__(
        self, options: SpeculationOptions, *, max_num_seqs: int, places: int, device: torch.device
    ) -> None:
        """Make room for texts of `places` tokens, `max_num_seqs` of them under way at most."""
        self._options = options
        count = 2 * max_num_seqs
        if options.source is DraftSource.history:
            count = max(count, min(_HISTORY_BYTES // (4 * places), _MOST_TEXTS))
        self.table = torch.zeros(count, places, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int32, device=device)
        self._free = list(range(count))
        self._of: dict[str, int] = {}
        """By request, that used longest ago first."""
        self._keys: dict[str, Hashable] = {}
        self._texts: dict[Hashable, list[int]] = {}
        """By what completions have in common that search each other, in the order of joining."""

    def batch(self, requests: Sequence[Any], states: Sequence[int]) -> DraftedBatch:
        """Return the rows of `requests`, which are vLLM's, with new texts for new ones.

        Args:
            requests: vLLM's requests, as many at most as may be under way.
            states: The place of each in vLLM's states.

        Returns:
            The rows on the device.
        """
        live = {request.request_id for request in requests}
        own = [self._place(request, live) for request in requests]
        sources = [
            self._sources(request, text) for request, text in zip(requests, own, strict=True)
        ]
        width = max(map(len, sources))
        padded = [text for row in sources for text in (*row, *[-1] * (width - len(row)))]
        limits = [request.num_prompt_tokens + request.max_tokens for request in requests]
        # All four go to the card in one copy. From pinned memory it waits for no step under way.
        flat = torch.from_numpy(np.array([*states, *own, *limits, *padded], dtype=np.int32))
        if self.table.is_cuda:
            flat = flat.pin_memory()
        count = len(requests)
        flat = flat.to(self.table.device, non_blocking=True)
        states_at, texts, limits_at = flat[: 3 * count].view(3, count)
        return DraftedBatch(states_at, texts, limits_at, flat[3 * count :].view(count, width))

    def read(self, rows: DraftedBatch, token_ids: Tensor, lengths: Tensor) -> None:
        """Take the texts of `rows` as they are in vLLM's states.

        Args:
            rows: The rows.
            token_ids: (states, places) all tokens of each request.
            lengths: (states,) how many these are.
        """
        states, texts = rows.states.long(), rows.texts.long()
        self.table[texts] = token_ids[states].to(self.table)
        self.lengths[texts] = lengths[states].to(self.lengths)

    def _place(self, request: Any, live: set[str]) -> int:
        name = request.request_id
        text = self._of.pop(name, None)
        if text is None:
            text = self._free.pop() if self._free else self._take_from(live)
            key = self._keys[name] = self._key(request)
            self._texts.setdefault(key, []).append(text)
        self._of[name] = text
        return text

    def _take_from(self, live: set[str]) -> int:
        """Return the text that was used longest ago by a request that is not `live`."""
        name = next(name for name in self._of if name not in live)
        text, key = self._of.pop(name), self._keys.pop(name)
        self._texts[key].remove(text)
        if not self._texts[key]:
            del self._texts[key]
        return text

    def _sources(self, request: Any, own: int) -> list[int]:
        found = self._texts[self._keys[request.request_id]]
        others = [text for text in reversed(found) if text != own]
        return [own, *others[: _MOST_SOURCES - 1]]

    def _key(self, request: Any) -> Hashable:
        if self._options.source is DraftSource.own:
            return str(request.request_id)
        prompt = tuple(request.prompt_token_ids)
        if self._options.source is DraftSource.history:
            return prompt
        # The adapter's name says the policy's version.
        return prompt, getattr(request.lora_request, "lora_name", "")
