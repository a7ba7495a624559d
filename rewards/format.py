"""This module rewards the form of a text: a pattern, tags in order, JSON that follows a schema."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample
from rlkit.runtime.distribution import lacks

if TYPE_CHECKING:
    from rlkit.types import Completion

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?```", re.DOTALL)


class Extent(StrEnum):
    """This names the part of a text that a pattern must match."""

    anywhere = "anywhere"
    start = "start"
    whole = "whole"


@per_sample
def regex(completion: Completion, *, pattern: str, part: str = "anywhere") -> float:
    """Return 1.0 when the text matches a regular expression of Python, else 0.0.

    A dot matches newlines as well. A pattern that takes for ever ends with the pool's deadline.

    Args:
        completion: The sample.
        pattern: The expression.
        part: One of `anywhere`, `start` and `whole`, see `Extent`.

    Returns:
        1.0 or 0.0.
    """
    expression = _compiled(pattern)
    match = {
        Extent.anywhere: expression.search,
        Extent.start: expression.match,
        Extent.whole: expression.fullmatch,
    }[Extent(part)]
    return float(match(completion.text) is not None)


@per_sample
def tags_in_order(completion: Completion, *, names: Sequence[str] = ("think", "answer")) -> float:
    """Return 1.0 when the text consists of these tags, each once, in order and not empty.

    Only white space may stand before, between and after them.
    """
    text = completion.text
    once = all(text.count(f"<{n}>") == 1 and text.count(f"</{n}>") == 1 for n in names)
    parts = (rf"\s*<{re.escape(n)}>(?=.*?\S.*?</)(.*?)</{re.escape(n)}>" for n in names)
    match = re.fullmatch("".join(parts) + r"\s*", text, re.DOTALL) if once else None
    return float(match is not None and all(group.strip() for group in match.groups()))


@per_sample
def json_schema(
    completion: Completion, *, schema: dict[str, Any] | None = None, column: str = "schema"
) -> float | None:
    """Return 1.0 when the text is JSON that follows a schema, 0.0 otherwise.

    The text is the whole completion, or what stands in its only fenced block. The
    function needs the extra `rlkit-lm[json]`.

    Args:
        completion: The sample.
        schema: The JSON Schema of all prompts; null takes the one of each prompt.
        column: The column with the prompt's own schema, an object or its text.

    Returns:
        1.0 or 0.0; None when the prompt's column holds null.

    Raises:
        ValueError: The schema is not one.
    """
    wanted = completion.prompt.columns[column] if schema is None else schema
    if wanted is None:
        return None
    validator = _validator(wanted if isinstance(wanted, str) else json.dumps(wanted))
    blocks = _FENCE.findall(completion.text)
    text = blocks[0] if len(blocks) == 1 else completion.text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(validator.is_valid(value))


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(
            f"pattern must be a regular expression, got {pattern!r}: {error}"
        ) from error


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    except ModuleNotFoundError as error:
        raise lacks("jsonschema", __name__) from error
    try:
        loaded = json.loads(schema)
        kind = validator_for(loaded)
        kind.check_schema(loaded)
    except (ValueError, SchemaError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"schema must be a JSON Schema, got {schema:.60}: {reason}") from error
    return kind(loaded)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")  # NaN and Infinity, which Python's reader takes
