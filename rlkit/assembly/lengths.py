"""This module measures how long the prompts of a run are, for the memory plan of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlkit.assembly.rows import look_at
from rlkit.config import Config
from rlkit.models.tokenizer import load_tokenizer
from rlkit.tasks import Overlong, Task
from rlkit.tasks.render import render_all

_LOOKED_AT = 256
"""Training prompts of an endless task."""


def longest_prompt(
    config: Config, task: Task, device: torch.device, *, say: Callable[[str], None]
) -> int | None:
    """Return the tokens of the longest training prompt; None where the plan does not ask.

    A card's memory ends suddenly, so its plan is for the longest prompt that is allowed.

    Args:
        config: It names the model whose tokenizer counts, and what becomes of prompts too long.
        task: The prompts.
        device: The run computes on it.
        say: It takes a line before each slow step.

    Returns:
        Tokens, >= 1, or None.

    Raises:
        ValueError: A prompt or the model's source is not valid.
    """
    if device.type == "cuda":
        return None
    tokenizer = load_tokenizer(config.model, say=say)
    if task.train.size is not None:
        # Every row, before a model is loaded: one that cannot be used ends the run here.
        lengths = look_at(task.train, config, tokenizer, say=say)[0].lengths
        most = task.max_prompt_length
        cut = config.task.overlong_prompts is Overlong.truncate_left
        return max(min(n, most) for n in (1, *lengths) if cut or n <= most)
    found = render_all(
        task.train,
        range(_LOOKED_AT),
        tokenizer,
        max_length=task.max_prompt_length,
        overlong=config.task.overlong_prompts,
    )
    return max((len(prompt.ids) for prompt in found.prompts), default=None)
