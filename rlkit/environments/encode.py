"""Text of several hands becomes ids here, and only the template's own can hold special tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SafeEncoder:
    """It encodes what others said with special tokens off."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up the tokens that text could forge."""
        self._tokenizer = tokenizer
        known = tokenizer.added_tokens_decoder.items()
        # White space is no way to forge a token, and some tokenizers add runs of it.
        self.added = {
            int(i): str(token.content)
            for i, token in known
            if token.special or str(token.content).strip()
        }
        self.special = {int(i): str(token.content) for i, token in known if token.special}

    def encode(self, pieces: Sequence[str], contents: Sequence[str]) -> tuple[int, ...]:
        """Encode as one text, as templates are meant to be, unless a content forges a token."""
        whole = joined(pieces, contents)
        ids = self.ids(whole)
        own = [self.ids(piece) for piece in pieces]
        if self._added_in(ids) == [i for part in own for i in self._added_in(part)]:
            return ids
        parts = list(own[0])
        for content, piece in zip(contents, own[1:], strict=True):
            parts += [*self._plain(content), *piece]
        return tuple(parts)

    def _plain(self, text: str) -> list[int]:
        """Encode text in which no added token may appear: each such text is cut in two."""
        cuts = {0, len(text)}
        for token in self.added.values():
            start = text.find(token)
            while start >= 0:
                cuts.add(start + 1)
                start = text.find(token, start + 1)
        places = sorted(cuts)
        parts = [text[a:b] for a, b in pairwise(places)]
        ids = [i for part in parts for i in self.ids(part)]
        if self._added_in(ids):
            raise ValueError(f"the tokenizer must encode {text[:80]!r} without special tokens")
        return ids

    def _added_in(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self.added]

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of trusted text."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def marked(self, message: Mapping[str, Any], mark: str, cut: list[str]) -> str:
        """Put numbered marks in place of words that are read as tokens; `cut` gets the words."""
        # The model may write `<think>`, which is an added token in some tokenizers.
        of_model = message["role"] == "assistant"
        words = (self.special if of_model else self.added).values()
        content = str(message["content"])
        if not any(word in content for word in words):
            return content
        longest_first = sorted(words, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", content)
        for i in range(1, len(parts), 2):
            cut.append(parts[i])
            parts[i] = f"{mark}{len(cut) - 1}-"
        return "".join(parts)


def joined(pieces: Sequence[str], contents: Sequence[str]) -> str:
    """Return the text of pieces with contents between them."""
    return "".join(map("".join, zip(pieces, [*contents, ""], strict=True)))


def split_at(text: str, marks: Sequence[str]) -> tuple[str, ...] | None:
    """Return the text around `marks`, None unless each is there once, in order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return (*pieces, text)
