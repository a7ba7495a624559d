"""This module measures how long the prompts of a run are, for the memory plan of a CPU."""

from __future__ import annotations

from rlkit.assembly.rows import UsableRows
from rlkit.config import Config
from rlkit.models.resolved import ResolvedModel
from rlkit.tasks.render import render_all

_LOOKED_AT = 256
"""Training prompts of an endless task."""


def longest_prompt(config: Config, rows: UsableRows, model: ResolvedModel) -> int | None:
    """Return the tokens of the longest training prompt; None where the plan does not ask.

    A card's memory ends suddenly, so its plan is for the longest prompt that is allowed.

    Args:
        config: It says what becomes of prompts that are too long.
        rows: The rows of the task that can be used.
        model: Its tokenizer counts, and its device decides.

    Returns:
        Tokens, >= 1, or None.

    Raises:
        ValueError: A prompt of an endless task is not valid.
    """
    if model.device.type == "cuda":
        return None
    if rows.lengths is not None:
        return max(1, *rows.lengths)
    found = render_all(
        rows.task.train,
        range(_LOOKED_AT),
        model.tokenizer,
        max_length=rows.task.max_prompt_length,
        overlong=config.task.overlong_prompts,
    )
    return max((len(prompt.ids) for prompt in found.prompts), default=None)
