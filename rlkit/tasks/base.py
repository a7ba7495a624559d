"""A task has prompts to train on, others to evaluate on, and a way to judge answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rlkit.rewards import RewardSpec
from rlkit.tasks.curriculum import Curriculum
from rlkit.types import Completion


class Message(NamedTuple):
    """A message is one turn of a conversation."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str
    more: str = ""
    """Further keys (`tool_calls`, `name`, ...) as one JSON object; empty = none. Text, because
    messages are compared and hashed."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An example is a prompt and what its rewards need, in the shape of TRL's data sets.

    Example: `Example(prompt="Q: max of 3, 9, 4\\nA:", columns={"answer": "9"})`.
    """

    prompt: str | tuple[Message, ...]
    columns: Mapping[str, object] = field(default_factory=dict)
    """JSON values: text, numbers, booleans, None, and lists and dicts of these."""
    where: str = field(default="", compare=False)
    """The row it came from, such as `row 3 of train.jsonl`, for messages; empty = none."""

    @property
    def key(self) -> str:
        """Return sixteen hex digits, equal for equal prompts in whatever task or file they are."""
        canonical = json.dumps(self.prompt, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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
    """What a completion gives as its answer, equal for equal answers, for a vote; None = nothing.
    The whole field is None when the task cannot know."""
    target: Callable[[Example], str] | None = None
    """The completion to imitate; None where that is the gold one, or where there is none."""
