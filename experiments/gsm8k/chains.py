"""Is a right answer calculated or guessed? This module reads the calculations of a solution.

`derived` is a reward function: it pays for a right answer that a right calculation of the text ends
in. `chain` is another one: it pays for each result of the data's own solution that the text
calculates. `guess_level` is what the same answers would earn on other questions.

    rlkit task=gsm8k '+reward.functions.derived.fn=experiments/gsm8k/chains.py:derived'
    python -m experiments.gsm8k.chains RUN/completions/eval-after-000048.parquet...
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlkit.environments.arithmetic import calculate
from rlkit.rewards.load import per_sample
from rlkit.rewards.numbers import same_answer, whole_number
from rlkit.rewards.unsloth_2025 import xml_answer
from rlkit.tracking.completions import read_samples

if TYPE_CHECKING:
    from rlkit.types import Completion

_NUMBER = r"\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
_UNIT = r"(?:\s+[A-Za-z][\w'/]*){0,4}"
"""Words after a number, such as `beetles/snake`."""
_TERM = rf"\(*{_NUMBER}{_UNIT}\)*"
_EQUATION = re.compile(rf"(?P<left>{_TERM}(?:\s*[-+*/]\s*{_TERM})+)\s*=\s*(?P<right>-?{_NUMBER})")
_TIMES = re.compile(r"(?<=[\w)%])\s*×\s*|(?<=[\w)%])\s+[xX]\s+|(?<=\d)[xX](?=\d)")
_SIGNS = str.maketrans({"÷": "/", "−": "-", "–": "-"})  # two kinds of minus
_PERCENT = re.compile(r"(?<=\d)%")
_WORDS = re.compile(r"[A-Za-z][\w'/]*|[$,]")
_MARKS = re.compile(r"<<[^<>=]*=\s*\$?(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))%?\s*>>")
"""This matches GSM8K's calculator marks, up to their result."""
_TOLERANCE = 0.005
"""Solutions round money to cents: a result may be wrong by half a cent."""


class Equation(NamedTuple):
    """This is a calculation in a text, such as `3 * $4 = $12`."""

    result: Fraction
    """The number that the text says it gives."""
    right: bool


def equations(text: str) -> list[Equation]:
    """Return the calculations of a text in their order; what cannot be evaluated is left out.

    Units in words do not matter, and 20% is 0.2 on the left and either 20 or 0.2 on the right.
    """
    found = []
    for match in _EQUATION.finditer(_TIMES.sub(" * ", text.translate(_SIGNS))):
        said = Fraction(_WORDS.sub("", match["right"]).removesuffix("%"))
        left = _PERCENT.sub("/100", match["left"])
        try:
            value = float(calculate(_WORDS.sub("", left)))
        except ValueError:  # unbalanced brackets, a division by zero
            continue
        shares = (said, said / 100) if match["right"].endswith("%") else (said,)
        right = any(math.isclose(value, s, rel_tol=0.0, abs_tol=_TOLERANCE) for s in shares)
        found.append(Equation(said, right))
    return found


@per_sample
def derived(completion: Completion, *, column: str = "answer") -> float:
    """Return 1 for a right answer that is the result of a right calculation in the text, else 0."""
    return float(is_derived(completion.text, completion.prompt.columns[column]))


@per_sample
def chain(completion: Completion, *, column: str = "solution") -> float | None:
    """Return the F1 of the results that the text calculates against those of the data's solution.

    The marks `<<48/2=24>>` of the data name the results. Wrong, useless and repeated calculations
    count as written, so that a list of guesses earns little. None: the solution has no marks.
    """
    return chain_f1(completion.text, str(completion.prompt.columns[column]))


def chain_f1(text: str, solution: str) -> float | None:
    """Return 2 x hits / (written + known): what `chain` pays for the text before the last answer.

    Args:
        text: What the policy wrote.
        solution: The data's own solution with its marks.

    Returns:
        A number in [0, 1]; None where the solution has no marks.
    """
    known = Counter(Fraction(mark.replace(",", "")) for mark in _MARKS.findall(solution))
    if not known:
        return None
    written = equations(text.rpartition("<answer>")[0] if "<answer>" in text else text)
    right = Counter(equation.result for equation in written if equation.right)
    return 2.0 * (known & right).total() / (len(written) + known.total())


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


def described(texts: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of solutions and what it is made of, each a share unless it says so.

    Args:
        texts: What the policy wrote, one a question.
        golds: The right answers, in the same order.

    Returns:
        `right`, `derived`, the level of a `guess`, `equations` a text, how many of these are right,
        and the share of texts `without` any.
    """
    size = len(texts)
    answers = [answer_of(text) for text in texts]
    pairs = list(zip(texts, golds, strict=True))
    written = [equations(text) for text in texts]
    each = [equation.right for chain in written for equation in chain]
    return {
        "right": sum(same_answer(a, g) for a, g in zip(answers, golds, strict=True)) / size,
        "derived": sum(is_derived(text, gold) for text, gold in pairs) / size,
        "guess": guess_level(answers, golds),
        "equations": len(each) / size,
        "equations_right": sum(each) / len(each) if each else math.nan,
        "without": sum(not chain for chain in written) / size,
    }


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        rows = read_samples(file)
        found = described([r.completion for r in rows], [str(r.columns["answer"]) for r in rows])
        print(f"{file.name}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()))
