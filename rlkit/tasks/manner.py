"""Say how a task speaks to a model, without reading its rows."""

from __future__ import annotations

from typing import NamedTuple

from rlkit.tasks import build_task
from rlkit.tasks.base import PromptStyle
from rlkit.tasks.config import DatasetConfig, GSM8KConfig, TaskConfig
from rlkit.tasks.rows import GSM8K_SYSTEM_PROMPT


class Manner(NamedTuple):
    """A manner is what a task adds to a question, and where it ends an answer."""

    style: PromptStyle = PromptStyle.chat
    system: str = ""
    """The system message; empty = none."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the model's stop tokens."""
    max_tokens: int | None = None
    """Most tokens of an answer; None = the task does not say."""


def manner_of(config: TaskConfig | None) -> Manner:
    """Return the manner of a task; a chat without anything where there is no task."""
    if config is None:
        return Manner()
    most = config.max_completion_length
    if isinstance(config, DatasetConfig):
        return Manner(config.style, config.system, tuple(config.stop), most)
    if isinstance(config, GSM8KConfig):
        return Manner(PromptStyle.chat, GSM8K_SYSTEM_PROMPT, (), most)
    task = build_task(config)
    return Manner(task.style, "", task.stop, most)
