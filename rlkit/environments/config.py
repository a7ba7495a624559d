"""These are the options of a run's environment: which one, and how long an episode may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from rlkit.schema import Options, require


class History(StrEnum):
    """This decides over chat templates that would rewrite turns of the past."""

    strict = "strict"
    """They are refused: what the model reads in training must be what it will read later."""
    append = "append"
    """All that was sampled stays, whatever the template would make of it in a later turn."""
    branch = "branch"
    """The model reads what the template makes of the past, as a context of its own in the row."""


class CutTurn(StrEnum):
    """This decides over a turn that met `environment.max_turn_tokens`."""

    end = "end"
    """The episode ends with it: what was cut short is not given to the environment."""
    answer = "answer"
    """The environment answers it as any other turn."""


class Admission(StrEnum):
    """This decides when the engine gets an episode's next turn."""

    rounds = "rounds"
    """All live episodes get their next turn together, once the environment has answered them."""
    stream = "stream"
    """Each gets it as soon as it is answered, while others still decode."""


class EnvironmentSpec(NamedTuple):
    """This names an environment and its options."""

    fn: str
    """A registered name, `package.module:Class` or `path/to/file.py:Class`."""
    options: Mapping[str, Any] = MappingProxyType({})


@dataclass(kw_only=True, slots=True)
class EnvironmentConfig(Options):
    """An environment answers the model's turns, in processes that can be killed."""

    fn: str = ""
    """A registered name (`calculator`), `package.module:Class` or `path/to/file.py:Class`. Empty =
    what the task comes with; most tasks have a single turn and no environment."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    max_turns: int = 8
    """Most turns of the model in an episode, >= 1."""
    max_turn_tokens: int | None = None
    """Most tokens of a turn, >= 1; null = what is left of `task.max_completion_length`, which
    limits all tokens of an episode after its prompt."""
    cut_turns: CutTurn = CutTurn.end
    """end or answer: what becomes of a turn that met `max_turn_tokens`."""
    history: History = History.strict
    """strict, append or branch: what becomes of a chat template that rewrites turns of the past."""
    admission: Admission = Admission.rounds
    """rounds or stream: when the engine gets an episode's next turn. Only vLLM in this process
    (`generator=vllm`) can stream."""
    timeout_s: float = 10.0
    """Seconds until a call of `start` or `step` is killed, > 0. Its episode has no reward."""
    episode_timeout_s: float = 120.0
    """Seconds that the environment may use for one episode in all, > 0; the episode then ends."""
    startup_timeout_s: float = 120.0
    """Seconds that importing the environment may take, > 0."""
    workers: int = 2
    """Processes, >= 1; about 15 MB each, and what the environment imports."""
    memory_mb: int | None = 2048
    """Most memory of a process in MB, >= 64; a call that needs more fails. null = no limit."""

    def __post_init__(self) -> None:
        for key in ("timeout_s", "episode_timeout_s", "startup_timeout_s"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"environment.{key}", "> 0 and finite", value)
        for key in ("max_turns", "workers"):
            require(getattr(self, key) >= 1, f"environment.{key}", ">= 1", getattr(self, key))
        tokens, memory = self.max_turn_tokens, self.memory_mb
        require(
            tokens is None or tokens >= 1, "environment.max_turn_tokens", ">= 1 or null", tokens
        )
        require(memory is None or memory >= 64, "environment.memory_mb", ">= 64 or null", memory)

    def spec(self, recommended: EnvironmentSpec | None) -> EnvironmentSpec | None:
        """Return the environment of a run; None for single turns.

        Raises ValueError when options are set and there is no environment to have them.
        """
        if self.fn:
            return EnvironmentSpec(self.fn, self.options)
        if recommended is not None:
            return EnvironmentSpec(recommended.fn, {**recommended.options, **self.options})
        for name in self.__slots__:
            require(
                getattr(self, name) == getattr(EnvironmentConfig(), name),
                f"environment.{name}",
                "left alone: the task has no environment, and environment.fn names none",
                getattr(self, name),
            )
        return None
