"""This module gives each part of a mixed task its own rewards."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import LoadedReward, load, per_sample

if TYPE_CHECKING:
    from rlkit.types import Completion

PART = "part"
"""The column that says which part of a mixed task a prompt is of."""
OF_PART = "of_part"
"""The registered name of the function below."""


@per_sample
def of_part(
    completion: Completion, *, part: str, fn: str, options: Mapping[str, Any] | None = None
) -> float | None:
    """Return the value of another function on prompts of one part, and None on all others.

    Args:
        completion: The sample.
        part: The part, as the column `part` has it.
        fn: The function, by any of the names that `reward.functions.NAME.fn` takes.
        options: Its options.

    Returns:
        The value; None means that the function does not apply.

    Raises:
        ValueError: The function takes groups and not single completions.
    """
    if completion.prompt.columns.get(PART) != part:
        return None
    function = _loaded(part, fn, json.dumps(dict(options or {}), sort_keys=True))
    if not function.per_sample:
        raise ValueError(f"options.fn must be a function of one completion, got {fn}")
    value: float | None = function.function(completion)
    return value


@functools.lru_cache(maxsize=64)
def _loaded(part: str, fn: str, options: str) -> LoadedReward:
    return load(part, fn, json.loads(options))
