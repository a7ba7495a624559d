"""This module renders a run's examples as its model sees them."""

from __future__ import annotations

from collections.abc import Iterable

from rlkit.config import Config
from rlkit.models.load import BaseModel
from rlkit.tasks import Split, Task
from rlkit.tasks.render import render_all
from rlkit.types import Prompt


def render_prompts(
    task: Task, split: Split, indices: Iterable[int], base: BaseModel, config: Config
) -> list[Prompt]:
    """Return examples `indices` of `split` as the model sees them.

    Args:
        task: The task of the examples.
        split: One half of the task.
        indices: Indices of examples, each >= 0.
        base: The model, for its tokenizer and chat template.
        config: It names the options of prompts.

    Returns:
        The prompts, in order.
    """
    prompts = render_all(
        split,
        indices,
        base.tokenizer,
        max_length=task.max_prompt_length,
        overlong=config.task.overlong_prompts,
    ).prompts
    base.check_prompts(prompts)
    return prompts
