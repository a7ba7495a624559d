"""This module rewards length and the absence of repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rlkit.rewards.answers import numeric_match, raw_exact
from rlkit.rewards.load import per_sample
from rlkit.rewards.tags import tag_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_GRADERS: Mapping[str, Callable[..., float | None]] = {
    "tag_answer": tag_answer,
    "raw_exact": raw_exact,
    "numeric_match": numeric_match,
}


@per_sample
def cosine_length(
    completion: Completion,
    *,
    max_length: int,
    grader: str = "tag_answer",
    correct_short: float = 2.0,
    correct_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
) -> float | None:
    """Return the cosine reward of Yeo et al. 2025 (arXiv:2502.03373).

    Right answers earn more when they are short, wrong ones lose less when they are long. The value
    is long + (short - long) (1 + cos(pi L / max_length)) / 2 for a length of L < max_length tokens.

    Args:
        completion: The sample.
        max_length: Tokens from which `exceeded` is paid, >= 1.
        grader: The function that says what is right: tag_answer, raw_exact or numeric_match.
        correct_short: Value of a right answer of no tokens. Defaults are the paper's.
        correct_long: Value of a right answer near `max_length`.
        wrong_short: Value of a wrong answer of no tokens.
        wrong_long: Value of a wrong answer near `max_length`.
        exceeded: Value of `max_length` tokens and more, right or not.

    Returns:
        The value; None where `grader` says None.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be >= 1, got {max_length}")
    if grader not in _GRADERS:
        raise ValueError(f"grader must be one of {', '.join(_GRADERS)}, got {grader}")
    correct = _GRADERS[grader](completion)
    if correct is None:
        return None
    length = len(completion.ids)
    if length >= max_length:
        return exceeded
    short, long = (correct_short, correct_long) if correct else (wrong_short, wrong_long)
    return long + (short - long) * (1 + math.cos(math.pi * length / max_length)) / 2


@per_sample
def repetition(completion: Completion, *, n: int = 3, max_penalty: float = -1.0) -> float:
    """Return `max_penalty` times the share of word n-grams that occurred before.

    n is >= 1 and max_penalty <= 0; a short text gets 0.0. This is the n-gram penalty of Yeo et al.
    2025 (arXiv:2502.03373), with one value for the whole completion.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if max_penalty > 0:
        raise ValueError(f"max_penalty must be <= 0, got {max_penalty}")
    words = completion.text.lower().split()
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not ngrams:
        return 0.0
    return max_penalty * (1 - len(set(ngrams)) / len(ngrams))


@per_sample
def overlong(completion: Completion, *, max_length: int, buffer: int) -> float:
    """Return DAPO's soft penalty of long completions (arXiv:2503.14476, eq. 13).

    It is 0 up to `max_length - buffer` tokens, falls linearly to -1 at `max_length`, and stays
    there.

    Args:
        completion: The sample.
        max_length: Tokens from which the penalty is whole, >= 1.
        buffer: Tokens over which it grows, in [1, max_length].

    Returns:
        A number in [-1, 0].
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer must be in [1, max_length={max_length}], got {buffer}")
    excess = len(completion.ids) - (max_length - buffer)
    return -min(1.0, max(0.0, excess / buffer))


@per_sample
def length_range(completion: Completion, *, min_length: int = 1, max_length: int) -> float:
    """Return 1.0 when the completion has `min_length` to `max_length` tokens, else 0.0."""
    if not 0 <= min_length <= max_length:
        raise ValueError(f"min_length must be in [0, max_length={max_length}], got {min_length}")
    return float(min_length <= len(completion.ids) <= max_length)
