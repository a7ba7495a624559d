"""This module makes tasks of rows: GSM8K, and data sets of your own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlkit.rewards import RewardSpec
from rlkit.rewards.numbers import ballot, plain
from rlkit.rewards.unsloth_2025 import correctness, xml_answer
from rlkit.tasks.base import Example, Message, PromptStyle, Task
from rlkit.tasks.config import DatasetConfig, GSM8KConfig
from rlkit.tasks.conversation import read_messages
from rlkit.tasks.data import column, data_splits, json_value, text_column
from rlkit.types import Completion

GSM8K_SYSTEM_PROMPT = """\
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>"""
"""The system prompt of the February 2025 GRPO notebooks."""

# The five of the February 2025 notebooks, mended: reasoning may have several lines, answers may be
# negative and are compared as numbers. `reward=gsm8k_seed` has them as published, where no
# completion can earn both formats.
_GSM8K_REWARDS = (
    RewardSpec("xmlcount", "xmlcount"),
    RewardSpec("soft_format", "soft_format", options={"multiline": True}),
    RewardSpec("strict_format", "strict_format", options={"multiline": True}),
    RewardSpec("int", "int", options={"signed": True}),
    RewardSpec("correctness", "correctness", options={"as_numbers": True}),
)


_CALCULATION = re.compile(r"<<[^<>]*>>")
"""GSM8K writes each calculation a second time, for a calculator: 48/2 = <<48/2=24>>24."""


def gsm8k(config: GSM8KConfig) -> Task:
    """Make a task of rows with `question` and `answer`; `####` may stand before the answer."""

    def to_example(row: Mapping[str, Any], where: str) -> Example:
        question = text_column(row, "question", where)
        solution = text_column(row, "answer", where)
        answer = solution.rpartition("####")[2].strip().replace(",", "")
        if not answer:
            raise ValueError(f"{where}: column answer must have text after ####, got none")
        prompt = (Message("system", GSM8K_SYSTEM_PROMPT), Message("user", question))
        return Example(prompt=prompt, columns={"answer": answer, "solution": solution})

    train, held = data_splits(config, to_example)
    return Task(
        name=config.name,
        style=PromptStyle.chat,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=(),
        rewards=_GSM8K_REWARDS,
        success=_is_correct,
        gold_completion=_gsm8k_target,
        answer=_gsm8k_vote,
        target=_gsm8k_target,
    )


def dataset(config: DatasetConfig) -> Task:
    """Make a task of the user's rows, by an explicit map of columns."""
    if "prompt" not in config.columns:
        raise ValueError(
            "task.columns.prompt must name the column with the prompts, "
            f"got only {config.columns or 'nothing'}"
        )
    others = {name: source for name, source in config.columns.items() if name != "prompt"}

    def to_example(row: Mapping[str, Any], where: str) -> Example:
        source = config.columns["prompt"]
        prompt = _prompt(column(row, source, where), config, f"{where}: column {source}")
        columns = {
            name: json_value(column(row, s, where), f"{where}: column {s}")
            for name, s in others.items()
        }
        return Example(prompt=prompt, columns=columns)

    def gold(example: Example) -> str:
        text = config.gold
        for name, value in example.columns.items():
            text = text.replace("{" + name + "}", plain(value))
        return text

    train, held = data_splits(config, to_example)
    return Task(
        name=config.name,
        style=config.style,
        train=train,
        eval=held,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
        stop=tuple(config.stop),
        rewards=(),
        success=None,
        gold_completion=gold if config.gold else None,
        target=_own_completion if "completion" in config.columns else None,
    )


def _prompt(value: Any, config: DatasetConfig, where: str) -> str | tuple[Message, ...]:
    if config.style is PromptStyle.raw:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where} must be text (task.style=raw), got {value!r:.60}")
        return value
    system = (Message("system", config.system),) if config.system else ()
    if isinstance(value, str) and value.strip():
        return (*system, Message("user", value))
    if isinstance(value, list) and value:
        return (*system, *read_messages(value, where, ignored=config.ignore_keys))
    raise ValueError(f"{where} must be text or a list of messages, got {value!r:.60}")


def _is_correct(completion: Completion) -> bool:
    return correctness(completion, as_numbers=True) > 0


def _own_completion(example: Example) -> str:
    return plain(example.columns["completion"])


def _gsm8k_vote(completion: Completion) -> str | None:
    return ballot(xml_answer(completion.text)) if "<answer>" in completion.text else None


def _gsm8k_target(example: Example) -> str:
    """Return the row's own solution, its calculator marks left out, inside the tags."""
    solution = str(example.columns["solution"]).rpartition("####")[0] or "It is clear."
    reasoning = _CALCULATION.sub("", solution).strip()
    answer = example.columns["answer"]
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"
