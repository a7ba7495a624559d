"""This module turns pairs and single completions into questions, and replies into verdicts.

A pair is always asked in both orders: a judge that prefers a place, not an answer, then gives .5
instead of noise. p = (P(A | first, second) + 1 - P(A | second, first)) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlkit.rewards.judge.asking import Asked, Asking
from rlkit.rewards.judge.prompts import JudgePrompt
from rlkit.rewards.judge.reading import read_reply
from rlkit.rewards.wire import Failure


class PairQuestion(NamedTuple):
    """These are two answers to one request."""

    request: str
    first: str
    second: str
    reference: str = ""


class PairVerdict(NamedTuple):
    """This is what a judge says of a pair."""

    p_first: float | None
    """P(the first answer is better), mean of both orders; None = the judgment failed."""
    in_slot_a: tuple[float | None, float | None] = (None, None)
    """P(the answer in slot A is better) as asked: first in A, then second in A."""
    failure: Failure | None = None
    message: str = ""
    asked: bool = True
    """False for two equal texts, which need no judge."""
    cached: int = 0
    """Replies among the two that the store had."""

    @property
    def flipped(self) -> bool:
        """Return whether the preferred answer is another one in the other order."""
        a, b = self.in_slot_a
        return a is not None and b is not None and (a - 0.5) * (0.5 - b) < 0.0


class LevelQuestion(NamedTuple):
    """This is one answer to one request."""

    request: str
    completion: str
    reference: str = ""


class LevelVerdict(NamedTuple):
    """This is what a judge says of one answer."""

    value: float | None
    """Level scaled to [0, 1]; None = the judgment failed."""
    failure: Failure | None = None
    message: str = ""
    cached: bool = False


def compare(
    asking: Asking, prompt: JudgePrompt, pairs: Sequence[PairQuestion]
) -> list[PairVerdict]:
    """Return the verdict on each pair, from two questions; two equal texts are a tie."""
    differing = [pair for pair in pairs if pair.first != pair.second]
    conversations = [
        prompt.messages(
            {
                "prompt": pair.request,
                "first": pair.first if first_in_a else pair.second,
                "second": pair.second if first_in_a else pair.first,
                "reference": pair.reference,
            }
        )
        for pair in differing
        for first_in_a in (True, False)
    ]
    replies = asking.ask(conversations)
    both = zip(replies[0::2], replies[1::2], strict=True)
    judged = iter([_pair_verdict(asking, first, second) for first, second in both])
    return [
        next(judged) if pair.first != pair.second else PairVerdict(0.5, asked=False)
        for pair in pairs
    ]


def grade(
    asking: Asking, prompt: JudgePrompt, questions: Sequence[LevelQuestion]
) -> list[LevelVerdict]:
    """Return the level of each completion."""
    conversations = [
        prompt.messages(
            {
                "prompt": question.request,
                "completion": question.completion,
                "reference": question.reference,
                "levels": str(asking.options.levels),
            }
        )
        for question in questions
    ]
    return [_level_verdict(asking, reply) for reply in asking.ask(conversations)]


def _level_verdict(asking: Asking, reply: Asked) -> LevelVerdict:
    if reply.choice is None:
        return LevelVerdict(None, reply.failure, reply.message)
    reading = read_reply(reply.choice, asking.options)
    failure = Failure.no_verdict if reading.value is None else None
    return LevelVerdict(reading.value, failure, reading.problem, reply.cached)


def _pair_verdict(asking: Asking, first: Asked, second: Asked) -> PairVerdict:
    a, b = _level_verdict(asking, first), _level_verdict(asking, second)
    slots, cached = (a.value, b.value), a.cached + b.cached
    if a.value is None or b.value is None:
        bad = a if a.value is None else b
        return PairVerdict(None, slots, bad.failure, bad.message, cached=cached)
    # In this order of operations equal probabilities of slot A are a tie to the last bit.
    return PairVerdict(0.5 + (a.value - b.value) / 2.0, slots, cached=cached)
