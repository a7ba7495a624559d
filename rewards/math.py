"""Mathematical equivalence with math-verify (`pip install 'rlkit-lm[math]'`), tested with 0.9.0.

Comparing two short formulas can take forever (`9^{9^{9^{9}}}`), partly in C code that no alarm
interrupts. math-verify's own alarms end the rest early; the pool's deadline ends everything.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample
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
    completion: Completion, *, column: str = "answer", alarm_s: int = 3
) -> float | None:
    """1.0 when the text's final formula is equivalent to the prompt's `column` (LaTeX or plain).

    `alarm_s`, whole seconds >= 1, bounds each of parsing and comparing; raises TimeoutError beyond.
    None when the column holds no formula that math-verify understands.
    """
    if alarm_s < 1:
        raise ValueError(f"alarm_s must be >= 1, got {alarm_s}")
    try:
        gold = _parse_gold(str(completion.prompt.columns[column]), alarm_s)
        return None if not gold else _is_equivalent(gold, completion.text, alarm_s)
    except TimeoutException as error:  # not an Exception: it would pass for a crash
        raise TimeoutError(f"math-verify took more than {alarm_s} s") from error


def _is_equivalent(gold: list[Any], text: str, alarm_s: int) -> float:
    try:
        candidates = parse(text, parsing_timeout=alarm_s, raise_on_error=True)
    except Exception:  # whatever sympy makes of a model's formula: it is no answer
        return 0.0
    for expected in gold:
        for candidate in candidates:
            try:
                if verify(expected, candidate, timeout_seconds=alarm_s, raise_on_error=True):
                    return 1.0
            except Exception:  # incomparable
                continue
    return 0.0


@functools.lru_cache(maxsize=64)  # the samples of a prompt share it
def _parse_gold(gold: str, alarm_s: int) -> list[Any]:
    text = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    parsed: list[Any] = parse(text, parsing_timeout=alarm_s)
    return parsed
