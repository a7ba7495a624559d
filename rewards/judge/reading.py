"""This module reads one reply: a probability, a level, or why it is no verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rlkit.rewards.judge.options import JudgeMode, JudgeOptions, VerdictSource

_BRACKETS = re.compile(r"\[\[\s*([ABC]|[1-9])\s*\]\]")
_PAIR_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}
_SHOWN = 80
_MOST_LOGPROB = 1e-3
"""Rounding in 16 bits may lift the log-probability of a certain token a little above 0."""


class VerdictReading(NamedTuple):
    """This is what a reply says."""

    value: float | None
    """P(A is better) in [0, 1], or the level scaled to [0, 1]; None = no verdict."""
    problem: str = ""
    """Why there is none, in one line."""


def read_reply(choice: Mapping[str, Any], options: JudgeOptions) -> VerdictReading:
    """Return the verdict in one choice of a reply, live or from the store."""
    if options.verdicts is VerdictSource.text:
        return _from_text(choice, options)
    return _from_tokens(choice, options)


def _values(options: JudgeOptions) -> Mapping[str, float]:
    """Return the number that each verdict stands for."""
    if options.mode is JudgeMode.pairwise:
        return _PAIR_VALUES
    best = options.levels - 1
    return {str(level): (level - 1) / best for level in range(1, options.levels + 1)}


def _from_text(choice: Mapping[str, Any], options: JudgeOptions) -> VerdictReading:
    text = _text(choice)
    values = _values(options)
    found = [word for word in _BRACKETS.findall(text) if word in values]
    if not found:
        wanted = "[[A]], [[B]] or [[C]]" if options.mode is JudgeMode.pairwise else "[[1]]"
        return VerdictReading(None, f"the reply must end with {wanted}, got {text[-_SHOWN:]!r}")
    return VerdictReading(values[found[-1]])


def _from_tokens(choice: Mapping[str, Any], options: JudgeOptions) -> VerdictReading:
    values = _values(options)
    mass = dict.fromkeys(values, 0.0)
    try:
        content = (choice.get("logprobs") or {}).get("content") or []
        if not content:
            return VerdictReading(None, "the endpoint gives no logprobs: set verdicts=text")
        for word, probability in _first_token(content):
            if word in mass:
                mass[word] += probability
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        shown = " ".join(f"{choice.get('logprobs')}".split())[:_SHOWN]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        return VerdictReading(None, f"logprobs must be in OpenAI's format, got {shown} ({reason})")
    total = math.fsum(mass.values())
    if total < max(options.min_mass, 1e-12):
        words = "/".join(values)
        return VerdictReading(
            None,
            f"the reply's first token must be one of {words} with probability >= "
            f"{options.min_mass:g}, got {total:.2g}: {_text(choice)[:_SHOWN]!r}",
        )
    return VerdictReading(math.fsum(values[word] * p for word, p in mass.items()) / total)


def _first_token(content: Any) -> Iterator[tuple[str, float]]:
    """Yield the words that the first token may have been, and their probabilities.

    Endpoints are many, and some are wrong. Whatever is not in OpenAI's format raises one of the
    errors that `_from_tokens` catches.
    """
    for entry in content[0].get("top_logprobs") or content[:1]:
        logprob = float(entry["logprob"])
        if not logprob <= _MOST_LOGPROB:  # also true of NaN
            raise ValueError(f"a logprob must be <= 0, got {logprob:g}")
        yield str(entry["token"]).strip(), math.exp(logprob)


def _text(choice: Mapping[str, Any]) -> str:
    content = (choice.get("message") or {}).get("content")
    return content if isinstance(content, str) else ""
