"""Is a right answer calculated or guessed? This module reads the calculations of a solution.

`derived` is a reward function: it pays for a right answer that a right calculation of the text ends
in. `guess_level` is what the same answers would earn on other questions.

    rlkit task=gsm8k '+reward.functions.derived.fn=experiments/gsm8k/chains.py:derived'
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from rlkit.environments.arithmetic import calculate
from rlkit.rewards.load import per_sample
from rlkit.rewards.numbers import same_answer, whole_number
from rlkit.rewards.unsloth_2025 import xml_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_NUMBER = r"\$?\d[\d,]*(?:\.\d+)?|\$?\.\d+"
_EQUATION = re.compile(
    rf"(?P<left>\(*(?:{_NUMBER})\)*(?:\s*[-+*/x×÷]\s*\(*(?:{_NUMBER})\)*)+)"
    rf"\s*=\s*(?P<right>{_NUMBER})"
)
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/", "$": None, ",": None})
_TOLERANCE = 0.005
"""Solutions round money to cents: a result may be wrong by half a cent."""


class Equation(NamedTuple):
    """This is a calculation in a text, such as `3 * $4 = $12`."""

    result: Fraction
    """The number that the text says it gives."""
    right: bool


def equations(text: str) -> list[Equation]:
    """Return the calculations of a text in their order; what cannot be evaluated is left out."""
    found = []
    for match in _EQUATION.finditer(text):
        said = Fraction(match["right"].translate(_SIGNS))
        try:
            value = float(calculate(match["left"].translate(_SIGNS)))
        except ValueError:  # unbalanced brackets, a division by zero
            continue
        found.append(Equation(said, math.isclose(value, said, rel_tol=0.0, abs_tol=_TOLERANCE)))
    return found


@per_sample
def derived(completion: Completion, *, column: str = "answer") -> float:
    """Return 1 for a right answer that is the result of a right calculation in the text, else 0."""
    return float(is_derived(completion.text, completion.prompt.columns[column]))


def is_derived(text: str, gold: object) -> bool:
    """Tell whether the last tag holds the right answer, and a right calculation gave it."""
    if "<answer>" not in text or not same_answer(xml_answer(text), gold):
        return False
    answer = whole_number(gold)
    return any(e.right and e.result == answer for e in equations(text.rpartition("<answer>")[0]))


def answer_of(text: str) -> str:
    """Return what stands in the last tag; empty where there is no tag."""
    return xml_answer(text) if "<answer>" in text else ""


def guess_level(answers: Sequence[str], golds: Sequence[str]) -> float:
    """Return the share of right answers if each were given to a question drawn at random.

    It is the expectation over all ways to exchange the questions. A policy that says common numbers
    whatever is asked has an accuracy of just this.

    Args:
        answers: What the policy answered, one a question.
        golds: The right answers, in the same order.

    Returns:
        A number in [0, 1].
    """
    said, true = (Counter(map(whole_number, texts)) for texts in (answers, golds))
    said.pop(None, None)
    hits = sum(count * true.get(number, 0) for number, count in said.items())
    return hits / (len(answers) * len(golds))
