"""This module makes tasks of summaries and of preferences, which have no right answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlkit.rewards.numbers import plain
from rlkit.tasks.base import Example, Message, PromptStyle, Split, Task
from rlkit.tasks.config import DataConfig
from rlkit.tasks.conversation import read_messages
from rlkit.tasks.data import column, data_splits, text_column
from rlkit.tasks.more_config import PreferencesConfig, TLDRConfig


def tldr(config: TLDRConfig) -> Task:
    """Make a task of rows with `prompt`, which ends in `TL;DR:`, and `completion`."""

    def to_example(row: Mapping[str, Any], where: str) -> Example:
        prompt = text_column(row, "prompt", where)
        return Example(prompt=prompt, columns={"summary": text_column(row, "completion", where)})

    return _task(config, PromptStyle.raw, *data_splits(config, to_example), target="summary")


def preferences(config: PreferencesConfig) -> Task:
    """Make a task of pairs; the chosen answer is the one to imitate."""

    def to_example(row: Mapping[str, Any], where: str) -> Example:
        chosen, rejected = (column(row, name, where) for name in ("chosen", "rejected"))
        prompt = row.get("prompt")
        if prompt is None:
            prompt, chosen, rejected = _shared(chosen, rejected, where)
        pair = {
            "chosen": _answer(chosen, f"{where}: column chosen"),
            "rejected": _answer(rejected, f"{where}: column rejected"),
        }
        if pair["chosen"] == pair["rejected"]:
            raise ValueError(f"{where}: chosen and rejected must differ, got {chosen!r:.60} twice")
        return Example(prompt=_prompt(prompt, config.style, where), columns=pair)

    return _task(config, config.style, *data_splits(config, to_example), target="chosen")


def _task(
    config: DataConfig, style: PromptStyle, train: Split, held: Split, *, target: str
) -> Task:
    return Task(
        name=config.name,
        style=style,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=(),
        rewards=(),
        success=None,
        gold_completion=None,
        target=lambda example: plain(example.columns[target]),
    )


def _prompt(value: Any, style: PromptStyle, where: str) -> str | tuple[Message, ...]:
    if isinstance(value, str) and value.strip():
        return value if style is PromptStyle.raw else (Message("user", value),)
    if isinstance(value, list) and value and style is PromptStyle.chat:
        return read_messages(value, f"{where}: column prompt", ignored=())
    rule = "text" if style is PromptStyle.raw else "text or a list of messages"
    raise ValueError(f"{where}: column prompt must be {rule}, got {value!r:.60}")


def _answer(value: Any, where: str) -> str:
    """Return the text of an answer: text, or a conversation's only turn of the assistant."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content") if value[0].get("role") == "assistant" else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text or one turn of the assistant, got {value!r:.60}")
    return value


def _shared(chosen: Any, rejected: Any, where: str) -> tuple[Any, Any, Any]:
    """Return the turns that two conversations begin with, and what is left of each."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise ValueError(
            f"{where} must have a column prompt, or conversations in chosen and rejected, got "
            f"{chosen!r:.60}"
        )
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if not same:
        raise ValueError(f"{where}: chosen and rejected must begin with the same turns, got none")
    return chosen[:same], chosen[same:], rejected[same:]
