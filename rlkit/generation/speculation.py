"""Speculation with coupled noise: guess the next tokens, and check the guesses in one pass.

A sampled token is a function of the logits, the row's seed and the token's place. So each place has
one token that the sampler would take, whatever was guessed there. A guess is kept exactly where it
is that token. Hence the completions are those without guesses, up to the rounding of logits.
A guess of token x is kept with the probability p(x), as in rejection sampling.

A guess is what followed an earlier occurrence of the row's last tokens. That is looked for in the
row's prompt and completion, in the other completions of its prompt, and in those of earlier steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rlkit.schema import Between, Options, require


class SpeculationKind(StrEnum):
    """The next tokens of a completion are guessed in one of these ways."""

    none = "none"
    """They are not: each pass of the model gives a completion one token."""
    ngram = "ngram"
    """By what followed an earlier occurrence of its last tokens."""


class DraftSource(StrEnum):
    """The places where an earlier occurrence is looked for."""

    own = "own"
    """The prompt and the completion itself."""
    group = "group"
    """The other completions of the same prompt as well."""
    history = "history"
    """What was sampled last for the same prompt in an earlier step as well."""


@dataclass(kw_only=True, slots=True)
class SpeculationOptions(Options):
    """These options say how the next tokens are guessed; see `rlkit.generation.speculation`."""

    kind: SpeculationKind = SpeculationKind.none
    """The samples are the same with any kind, up to the rounding of a pass over more tokens."""
    tokens: Annotated[int, Between(1, 15)] = 3
    """Most tokens guessed for a completion in one pass, in [1, 15]."""
    shortest: Annotated[int, Between(1, 16)] = 2
    """Least number of last tokens that must have occurred before, in [1, 16]."""
    longest: Annotated[int, Between(1, 16)] = 4
    """Number of last tokens that is tried first, in [1, 16]."""
    source: DraftSource = DraftSource.group
    rows: Annotated[int, Between(1, 4096)] = 64
    """Most completions under way with which tokens are guessed, in [1, 4096]. With more of them a
    pass is bound by arithmetic, and a wrong guess costs time."""

    def __post_init__(self) -> None:
        for key, value, high in (
            ("tokens", self.tokens, 15),
            ("shortest", self.shortest, 16),
            ("longest", self.longest, 16),
            ("rows", self.rows, 4096),
        ):
            require(1 <= value <= high, f"generator.speculation.{key}", f"in [1, {high}]", value)
        rule = f">= generator.speculation.shortest ({self.shortest})"
        require(self.longest >= self.shortest, "generator.speculation.longest", rule, self.longest)

    @property
    def is_on(self) -> bool:
        """Return whether tokens are guessed."""
        return self.kind is not SpeculationKind.none


def refuse_speculation(options: SpeculationOptions, *, where: str) -> None:
    """Raise ValueError when `options` ask for guesses `where` there are none."""
    rule = f"none with {where}"
    require(not options.is_on, "generator.speculation.kind", rule, options.kind.value)


def spare_columns(row_tokens: int) -> int:
    """Return the columns out of use that a cache of rows of `row_tokens` may have; see `hf`."""
    return row_tokens // 8 + 64


def accepted_drafts(
    sampled: Int[Tensor, "N K1"], drafts: Int[Tensor, "N K"], lengths: Int[Tensor, " N"]
) -> Int[Tensor, " N"]:
    """Count the guesses of each row that are kept: those before the first wrong one.

    A row gains one token more than that, the sampler's own behind the last guess that was right.

    Args:
        sampled: (N, K + 1) the sampler's token behind the row's last token and behind each guess.
        drafts: (N, K) the guesses.
        lengths: (N,) how many of a row's K guesses were made, in [0, K].

    Returns:
        (N,) counts in [0, lengths].
    """
    made = torch.arange(drafts.shape[1], device=drafts.device) < lengths[:, None]
    right = (sampled[:, :-1] == drafts) & made
    return right.long().cumprod(dim=1).sum(dim=1)


class _Continuation(NamedTuple):
    text: list[int]
    start: int


class DraftIndex:
    """It finds what followed the last tokens of a text, in texts that grow.

    The longest match counts, and of equally long ones the one that was written last.
    """

    def __init__(self, options: SpeculationOptions) -> None:
        self._options = options
        self._places: dict[tuple[int, ...], _Continuation] = {}

    def grow(self, text: list[int], new: Sequence[int]) -> None:
        """Append `new` to `text`, one of the texts that are searched; its list is kept."""
        for token in new:
            start = len(text)
            text.append(token)
            # What ends a text has no continuation, so the last tokens never find themselves.
            for size in range(self._options.shortest, self._options.longest + 1):
                if size <= start:
                    self._places[tuple(text[start - size : start])] = _Continuation(text, start)

    def draft(self, text: Sequence[int], most: int) -> list[int]:
        """Return up to `most` guesses of what follows `text`; none where nothing is known."""
        for size in range(min(self._options.longest, len(text)), self._options.shortest - 1, -1):
            place = self._places.get(tuple(text[len(text) - size :]))
            if place is not None:
                return place.text[place.start : place.start + min(most, self._options.tokens)]
        return []


class DraftHistory:
    """It remembers the completions that were sampled last for each prompt.

    Nothing depends on it but how many guesses are right.
    """

    def __init__(self, most_tokens: int = 2**22) -> None:
        """Hold at most `most_tokens` tokens; those of the prompts seen longest ago go first."""
        self._most_tokens, self._num_tokens = most_tokens, 0
        self._texts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def texts(self, prompt: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Return the completions of `prompt` as they were put; none for a new one."""
        return self._texts.get(prompt, ())

    def put(self, prompt: tuple[int, ...], completions: Sequence[tuple[int, ...]]) -> None:
        """Remember `completions` in place of those before."""
        self._num_tokens -= _count(self._texts.pop(prompt, ()))
        self._texts[prompt] = list(completions)
        self._num_tokens += _count(completions)
        while self._num_tokens > self._most_tokens:
            self._num_tokens -= _count(self._texts.pop(next(iter(self._texts))))


def _count(texts: Sequence[tuple[int, ...]]) -> int:
    return sum(map(len, texts))
