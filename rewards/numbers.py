"""This module reads numbers in texts and in columns as exact rationals.

A float would make 20-digit integers equal that are not, and would read `3/4` as 3 and 4. Everything
here is therefore a `fractions.Fraction`, and two numbers differ by more than a tolerance that the
caller names, or they are equal.

    3   -3   +.5   1,234.5   1e-05   3/4   \\frac{3}{4}   \N{MINUS SIGN}3

are one number each. A sign counts only where no letter, digit or bracket stands before it, so that
`10-3` holds 10 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

_SIGN = r"(?:(?<![\w)\]}])[-+\u2212])?"
_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][-+]?\d+(?![\w]))?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:"
    rf"\\[dt]?frac\s*\{{\s*(?P<top>-?\d+)\s*\}}\s*\{{\s*(?P<bottom>-?\d+)\s*\}}"
    rf"|(?P<numerator>{_DECIMAL}{_POWER})(?:\s?/\s?(?P<denominator>{_DECIMAL}{_POWER})(?!\s?/))?)"
)
_MAX_DIGITS = 4000
"""Beyond this many digits or powers of ten a text is no number: a completion must not fill the
memory with `1e999999999`. Python itself refuses to read integers of more than 4300 digits."""


def numbers_in(text: str) -> list[Fraction | None]:
    """Return the numbers of `text` in order; None stands for one that is too long or divides by 0.

    `1,234.5` is one number, `1,23` is two.
    """
    return [_value(match) for match in _NUMBER.finditer(text)]


def whole_number(value: object) -> Fraction | None:
    """Return the number that `value` is, with nothing but spaces and `$` around it; else None.

    `value` is a JSON number or text. A JSON number counts as it is written in decimal: 0.1 is 1/10.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Fraction(value)
    if isinstance(value, float):
        return Fraction(repr(value)) if abs(value) < float("inf") else None
    if not isinstance(value, str):
        return None
    match = _NUMBER.fullmatch(value.strip().strip("$").strip())
    return _value(match) if match else None


def plain(value: object) -> str:
    """Return `value` as text; a float without an exponent, so that 1e-05 becomes 0.00001."""
    if isinstance(value, float) and abs(value) < float("inf"):
        return format(Decimal(repr(value)), "f")
    return str(value)


def close(
    a: Fraction, b: Fraction, *, relative_tolerance: float = 0.0, absolute_tolerance: float = 0.0
) -> bool:
    """Return whether |a - b| is at most the larger of two tolerances, without rounding.

    Args:
        a: One number.
        b: The other number.
        relative_tolerance: Share of the larger of |a| and |b|, >= 0. 0 means exactly equal.
        absolute_tolerance: The same in the numbers' own unit, >= 0.

    Returns:
        Whether the numbers are as close as that.

    Raises:
        ValueError: A tolerance is negative or not finite.
    """
    for name, tolerance in (
        ("relative_tolerance", relative_tolerance),
        ("absolute_tolerance", absolute_tolerance),
    ):
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"{name} must be >= 0 and finite, got {tolerance}")
    if a == b:
        return True
    relative = Fraction(repr(float(relative_tolerance))) * max(abs(a), abs(b))
    return abs(a - b) <= max(relative, Fraction(repr(float(absolute_tolerance))))


def same_answer(text: str, gold: object) -> bool:
    """Return whether `text` is the answer `gold`, as numbers where both are, else as strings.

    Spaces around either do not matter.
    """
    expected = whole_number(gold)
    found = None if expected is None else whole_number(text)
    if expected is not None and found is not None:
        return found == expected
    return text.strip() == plain(gold).strip()


def ballot(text: str | None) -> str | None:
    """Return a text that is the same for equal answers: numbers as rationals, the rest folded.

    None where there is nothing to vote for.
    """
    if text is None or not text.strip():
        return None
    number = whole_number(text)
    return text.strip().casefold() if number is None else str(number)


def missing_column(columns: Mapping[str, object], column: str) -> str | None:
    """Return what is wrong with a row without `column`, or None."""
    if column in columns:
        return None
    return f"has no column {column}, only {', '.join(columns) or 'none'}"


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the number of a match; None where it has too many digits or divides by zero."""
    if match["top"] is not None:
        parts = [match["top"], match["bottom"]]
    else:
        parts = [match["numerator"], match["denominator"] or "1"]
    if any(not _readable(part) for part in parts):
        return None
    top, bottom = (Fraction(part.replace(",", "")) for part in parts)
    if bottom == 0:
        return None
    return (-1 if match["sign"] in ("-", "\N{MINUS SIGN}") else 1) * top / bottom


def _readable(part: str) -> bool:
    digits, _, power = part.lower().partition("e")
    return len(digits) <= _MAX_DIGITS and len(power) <= 6 and abs(int(power or 0)) <= _MAX_DIGITS
