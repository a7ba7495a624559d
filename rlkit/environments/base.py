"""An environment says what follows a turn of the model: two pure functions and a JSON state.

`docs/environments.md` shows a whole one.

The state is a value. So a worker that dies costs a repeated step, and an episode can be played
again from its beginning. Samples of a group can share nothing by accident.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol


class Message(NamedTuple):
    """A message is one turn of a conversation."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str
    more: str = ""
    """Further keys (`tool_calls`, `name`, ...) as one JSON object; empty = none. Text, because
    messages are compared and hashed."""


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


class Action(NamedTuple):
    """An action is what the model said in one turn."""

    text: str
    """Decoded without special tokens."""
    ids: tuple[int, ...]
    """The sampled ids, the stop token included."""
    turn: int
    """The number of the turn in its episode, from 0 on."""


class Turn(NamedTuple):
    """A turn is the environment's answer: what it says, what it pays, and whether that was all."""

    messages: tuple[Message, ...] = ()
    """The model reads them next; their roles are `user` or `tool`. Those of `start` follow the
    example's own prompt. They are ignored when `done`."""
    reward: float | None = None
    """The reward of the model's turn, any finite number; None = it earns nothing by itself."""
    done: bool = False
    """Whether the episode is over."""
    info: Mapping[str, float] = MappingProxyType({})
    """Numbers for the log, such as calls of tools and errors among them; they are summed over an
    episode and averaged over episodes."""


class Environment(Protocol):
    """Two functions without memory: all that an episode needs to know is in its state.

    An environment may have an attribute `roles`, the roles of its messages (`("user",)` without
    one), and `tools`, JSON schemas of functions for the chat template.
    """

    def start(self, example: Example, seed: int) -> tuple[Any, Turn]:
        """Return the first state, a JSON value, and what follows the example's prompt.

        Chance comes from `seed` alone, which the samples of a group share.
        """

    def step(self, state: Any, action: Action) -> tuple[Any, Turn]:
        """Return the next state and what the environment answers to the model's turn."""
