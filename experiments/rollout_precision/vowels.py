"""A dense reward for long completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlkit.rewards import per_sample

if TYPE_CHECKING:
    from rlkit.types import Completion


@per_sample
def vowels(completion: Completion) -> float:
    """Share of words that begin with a vowel, in [0, 1]; 0.0 without words."""
    words = [word for word in completion.text.lower().split() if word[0].isalpha()]
    return sum(word[0] in "aeiou" for word in words) / len(words) if words else 0.0
