"""Arithmetic is evaluated from its syntax tree: numbers and operators, and nothing else."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_MAX_LENGTH = 200
_MAX_BITS = 4096

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Return the value of an arithmetic expression as text: `12 * (3 + 4)` gives `84`.

    Raises ValueError, with one line for the model, for anything that is no such expression.
    """
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"an expression must have at most {_MAX_LENGTH} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(int(value)) if value == int(value) else f"{value:.10g}"
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"there is no value: {error}") from error
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"this is no arithmetic: {expression.strip()[:40]}") from error


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]  # as the line above says
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _check_power(left, right)
        result = _BINARY[type(node.op)](left, right)
        if isinstance(result, complex):
            raise ValueError("there is no real value")
        return result
    raise ValueError("only numbers and + - * / // % ** ( ) are understood")


def _check_power(base: float, exponent: float) -> None:
    """Refuse a power that would take minutes."""
    bits = base.bit_length() if isinstance(base, int) else 64
    if abs(exponent) * bits > _MAX_BITS:
        raise ValueError("the power is too large")
