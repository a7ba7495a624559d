"""This module rewards equations of the countdown game, which are read and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample

if TYPE_CHECKING:
    from rlkit.types import Completion

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ALLOWED = re.compile(r"[\d+\-*/(). \t\n]+")
_MAX_CHARACTERS = 500


@per_sample
def countdown(
    completion: Completion,
    *,
    numbers: str = "numbers",
    target: str = "target",
    format_score: float = 0.1,
) -> float:
    """Return 1.0 for an equation of the given numbers, each used once, that has the target's value.

    As in TinyZero the last `<answer></answer>` counts, a wrong equation in it earns a little, and
    every number must be used. Values are exact, so 1/3*3 is 1. What follows a `=` does not count.

    Args:
        completion: The sample.
        numbers: The column with the list of numbers.
        target: The column with the value to reach.
        format_score: Value of an answer that is there and wrong, in [0, 1).

    Returns:
        1.0, `format_score` or 0.0.
    """
    if not 0 <= format_score < 1:
        raise ValueError(f"format_score must be in [0, 1), got {format_score}")
    columns = completion.prompt.columns
    available, goal = columns[numbers], columns[target]
    if not isinstance(available, Sequence) or isinstance(available, str):
        raise ValueError(f"column {numbers} must hold a list of numbers, got {available!r:.60}")
    found = _ANSWER.findall(completion.text)
    if not found:
        return 0.0
    value = value_of(found[-1], available)
    return 1.0 if value is not None and value == Fraction(str(goal)) else format_score


def value_of(equation: str, numbers: Sequence[object]) -> Fraction | None:
    """Return the value of an equation that uses each number once; None where it does not."""
    text = equation.split("=")[0].strip()
    if not _ALLOWED.fullmatch(text) or len(text) > _MAX_CHARACTERS:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        used: list[int] = []
        value = _evaluate(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return value if sorted(used) == sorted(int(str(n)) for n in numbers) else None


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand, used)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, used), _evaluate(node.right, used)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    raise ValueError("only numbers and + - * / are part of the game")
