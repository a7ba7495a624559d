"""This module compares formulas with math-verify, tested with 0.9.0 (extra `rlkit-lm[math]`).

Comparing two short formulas can take forever (`9^{9^{9^{9}}}`), partly in C code that no alarm
interrupts. math-verify's own alarms end the rest early; the pool's deadline ends everything.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample
from rlkit.rewards.math_text import plain_gold, plain_text, says, word_answer
from rlkit.rewards.numbers import close, plain, whole_number
from rlkit.runtime.distribution import lacks

try:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException
except ModuleNotFoundError as error:
    raise lacks("math_verify", __name__) from error

if TYPE_CHECKING:
    from rlkit.types import Completion


@per_sample
def math_answer(
    completion: Completion,
    *,
    column: str = "answer",
    alarm_s: int = 3,
    relative_tolerance: float = 0.0,
) -> float | None:
    """Return 1.0 when the text's final answer is equivalent to the prompt's `column`, else 0.0.

    A currency sign and a unit in words do not matter; sets have no order, tuples do. A percentage
    equals its number and its share: 50% is 50 and 0.5. A gold answer in words is compared as words.
    Two numbers are compared as exact rationals: math-verify itself rounds to six decimals, where
    0.0000001 and 0.0000002 are the same. All other formulas are compared by math-verify.

    Args:
        completion: The sample.
        column: The column with the right formula, in LaTeX or plain.
        alarm_s: Whole seconds, >= 1, for each of parsing and comparing.
        relative_tolerance: Share of the larger number by which two numbers may differ, >= 0.

    Returns:
        1.0 or 0.0; None when the column holds no formula that math-verify understands.

    Raises:
        TimeoutError: Parsing or comparing took longer than `alarm_s`.
    """
    if alarm_s < 1:
        raise ValueError(f"alarm_s must be >= 1, got {alarm_s}")
    try:
        wanted = plain(completion.prompt.columns[column])
        if word := word_answer(wanted):
            return float(says(completion.text, word))
        gold = _parse_gold(plain_gold(wanted), alarm_s)
        if not gold:
            return None
        text = plain_text(completion.text, wanted)
        return _is_equivalent(gold, text, alarm_s, relative_tolerance)
    except TimeoutException as error:  # not an Exception: it would pass for a crash
        raise TimeoutError(f"math-verify took more than {alarm_s} s") from error


def _is_equivalent(gold: list[Any], text: str, alarm_s: int, tolerance: float) -> float:
    try:
        candidates = parse(text, parsing_timeout=alarm_s, raise_on_error=True)
    except Exception:  # whatever sympy makes of a model's formula: it is no answer
        return 0.0
    pair = _number(gold), None if _is_percentage(candidates, text) else _number(candidates)
    if pair[0] is not None and pair[1] is not None:
        return float(close(pair[0], pair[1], relative_tolerance=tolerance))
    for expected in gold:
        for candidate in candidates:
            try:
                if verify(expected, candidate, timeout_seconds=alarm_s, raise_on_error=True):
                    return 1.0
            except Exception:  # incomparable
                continue
    return 0.0


def _is_percentage(parsed: list[Any], text: str) -> bool:
    """Return whether a percent sign follows the number, which the kept text leaves out."""
    return any(f"{item}%" in text.replace(" %", "%") for item in parsed if isinstance(item, str))


def _number(parsed: list[Any]) -> Fraction | None:
    """Return the number that math-verify read, from the text that it kept beside its formula."""
    texts = [item for item in parsed if isinstance(item, str)]
    return whole_number(texts[0]) if len(texts) == 1 else None


@functools.lru_cache(maxsize=64)  # the samples of a prompt share it
def _parse_gold(gold: str, alarm_s: int) -> list[Any]:
    text = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    parsed: list[Any] = parse(text, parsing_timeout=alarm_s)
    return parsed
