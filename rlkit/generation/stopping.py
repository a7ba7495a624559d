"""Find the end of a completion: stop tokens, stop strings, the length limit."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CONTEXT = 8
"""Tokens decoded before a possible match, so that the tokenizer treats its start as inner text."""


class StopRule:
    """This watch finds the token that ends a completion.

    A stop string counts when it is part of the completion's text, special tokens left out, as the
    rewards see it. Only a tail of the text is decoded for each look. A token that is not special
    adds at least one byte. Hence a string of n bytes that has just been completed lies within the
    last n such tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        token_ids: frozenset[int],
        strings: tuple[str, ...],
    ) -> None:
        self._tokenizer = tokenizer
        self._token_ids = token_ids
        self._strings = strings
        self._special_ids = frozenset(tokenizer.all_special_ids) if strings else frozenset()
        self._tail = max((len(s.encode()) for s in strings), default=0) + _CONTEXT

    def tokens_kept(self, ids: Sequence[int], num_old: int) -> int | None:
        """Return the length up to the token of `ids[num_old:]` that ends the completion, or None.

        `ids[:num_old]` have been looked at before and did not end it.
        """
        kept = next((n + 1 for n in range(num_old, len(ids)) if ids[n] in self._token_ids), None)
        if self._strings and self._matches(ids, num_old, len(ids) if kept is None else kept):
            ends = range(num_old + 1, len(ids) + 1)
            kept = next(end for end in ends if self._matches(ids, num_old, end))
        return kept

    def _matches(self, ids: Sequence[int], num_old: int, end: int) -> bool:
        """Return whether the text of `ids[:end]` has a stop string that `ids[:num_old]` lacks."""
        first, num_before = num_old, 0
        while first > 0 and num_before < self._tail:
            first -= 1
            num_before += ids[first] not in self._special_ids
        text = self._tokenizer.decode([i for i in ids[first:end] if i not in self._special_ids])
        return any(string in text for string in self._strings)
