"""A task has prompts to train on, others to evaluate on, and a way to judge answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rlkit.environments.base import Example, Message
from rlkit.environments.config import EnvironmentSpec
from rlkit.rewards import RewardSpec
from rlkit.tasks.curriculum import Curriculum
from rlkit.types import Completion

__all__ = ["Example", "Message", "PromptStyle", "Split", "SplitName", "Task"]


class PromptStyle(StrEnum):
    """This names the way in which a prompt reaches the model."""

    chat = "chat"
    """Messages, through the model's chat template."""
    raw = "raw"
    """Text, as it stands."""


class SplitName(StrEnum):
    """A task has two halves; no prompt is in both."""

    train = "train"
    eval = "eval"


class Split(NamedTuple):
    """A split holds the examples of one half of a task."""

    name: SplitName
    get: Callable[[int], Example]
    """Example i, a pure function of i; 0 <= i, and i < `size` in a finite split."""
    size: int | None
    """None = endless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task holds prompts with their answers, and the rewards that go with them."""

    name: str
    style: PromptStyle
    train: Split
    eval: Split
    """Finite, and disjoint from `train`."""
    max_prompt_length: int
    """Tokens."""
    max_completion_length: int
    """Tokens."""
    stop: tuple[str, ...]
    """Strings that end a completion, beside the model's own stop tokens."""
    rewards: tuple[RewardSpec, ...]
    """What `reward=default` stands for; empty when the task cannot know."""
    success: Callable[[Completion], bool] | None
    """The task's own criterion, whatever the rewards; None when the task cannot know."""
    gold_completion: Callable[[Example], str] | None
    """A completion that earns full marks, for the check before training."""
    curriculum: Curriculum | None = None
    """Chooses the training examples by success; None = each comes in its turn."""
    answer: Callable[[Completion], str | None] | None = None
    """Returns the answer that a completion votes for, equal for equal answers; None = no vote.
    The whole field is None when the task cannot know."""
    target: Callable[[Example], str] | None = None
    """The completion to imitate; None where that is the gold one, or where there is none."""
    environment: EnvironmentSpec | None = None
    """Answers the model's turns; None = there is one turn."""
