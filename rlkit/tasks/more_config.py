"""This module holds the options of further tasks, and lists those of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from rlkit.schema import ANY_LENGTH, Schema, require
from rlkit.tasks.base import PromptStyle
from rlkit.tasks.config import (
    CalculatorConfig,
    ChainSumConfig,
    CompareDecimalsConfig,
    DataConfig,
    DatasetConfig,
    EchoConfig,
    GSM8KConfig,
    GuessNumberConfig,
    LookupConfig,
    MaxOfNConfig,
    RevWordsConfig,
    TaskConfig,
    require_between,
)


@dataclass(kw_only=True, slots=True)
class CountdownConfig(TaskConfig):
    """Reach a target with some numbers and the four operations, as TinyZero does."""

    name: str = "countdown"
    max_completion_length: int = 512
    min_numbers: int = 3
    """Fewest numbers, in [2, 6]."""
    max_numbers: int = 4
    """Most numbers, in [min_numbers, 6]."""
    max_number: int = 99
    """Largest of them, in [10, 999]."""
    max_target: int = 100
    """Largest target, in [20, 9999]; the smallest is 10."""

    def __post_init__(self) -> None:
        super(CountdownConfig, self).__post_init__()
        require_between("min_numbers", 2, 6, self.min_numbers)
        require_between("max_numbers", self.min_numbers, 6, self.max_numbers)
        require_between("max_number", 10, 999, self.max_number)
        require_between("max_target", 20, 9999, self.max_target)


@dataclass(kw_only=True, slots=True)
class TLDRConfig(DataConfig):
    """Summarise Reddit posts (arXiv:2009.01325): rows with a `prompt` and its `completion`."""

    name: str = "tldr"
    path: str = "trl-lib/tldr"
    max_completion_length: int = 53


@dataclass(kw_only=True, slots=True)
class PreferencesConfig(DataConfig):
    """Rows hold pairs of answers: `prompt`, `chosen` and `rejected` are text or messages.

    Without a `prompt` it is the turns that both conversations begin with.
    """

    name: str = "preferences"
    style: PromptStyle = PromptStyle.chat
    """chat: text becomes a user message; raw: text goes to the model as it stands."""
    max_completion_length: int = 512


@dataclass(kw_only=True, slots=True)
class ReasoningGymConfig(TaskConfig):
    """Problems of the library reasoning-gym, which judges the answers as well."""

    name: str = "reasoning_gym"
    dataset: str = "chain_sum"
    """The name of one of its data sets."""
    options: dict[str, Any] = field(default_factory=dict)
    """The options of that data set, such as `{min_terms: 2}`."""
    system: Annotated[str, ANY_LENGTH] = "Give the final answer inside <answer></answer>."
    """System message before each question; empty = none."""
    max_completion_length: int = 512


class CurriculumKind(StrEnum):
    """This decides how often each part of a mixture comes."""

    none = "none"
    """By its weight."""
    success = "success"
    """By its weight and by how far its success is from never and always."""


@dataclass(kw_only=True, slots=True)
class MixConfig(TaskConfig):
    """Train on several tasks in one, by weight."""

    name: str = "mix"
    parts: dict[str, Any] = field(default_factory=dict)
    """Tasks by a name of yours: `{sums: {name: chain_sum, weight: 2}, words: {name: rev_words}}`. A
    weight is > 0, 1 by default; the rest are the task's options."""
    curriculum: CurriculumKind = CurriculumKind.none
    """none, or success: a part that is p of the time right has the weight w 4 p (1 - p)."""
    curriculum_floor: float = 0.1
    """The least factor of a weight, in (0, 1], so that no part is forgotten."""
    max_completion_length: int = 512

    def __post_init__(self) -> None:
        super(MixConfig, self).__post_init__()
        floor = self.curriculum_floor
        require(0.0 < floor <= 1.0, "task.curriculum_floor", "in (0, 1]", floor)
        for name, options in self.parts.items():
            weight = options.get("weight", 1.0) if isinstance(options, Mapping) else 1.0
            valid = isinstance(weight, int | float) and 0 < weight < float("inf")
            require(valid, f"task.parts.{name}.weight", "> 0 and finite", weight)


CONFIGS: tuple[type[TaskConfig], ...] = (
    EchoConfig,
    RevWordsConfig,
    MaxOfNConfig,
    ChainSumConfig,
    CompareDecimalsConfig,
    CalculatorConfig,
    GuessNumberConfig,
    LookupConfig,
    GSM8KConfig,
    DatasetConfig,
    CountdownConfig,
    TLDRConfig,
    PreferencesConfig,
    ReasoningGymConfig,
    MixConfig,
)

SCHEMAS: tuple[Schema, ...] = tuple(Schema("task", config().name, config) for config in CONFIGS)
