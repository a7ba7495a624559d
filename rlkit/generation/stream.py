"""Completions that join an engine while it decodes others: what is asked for, and who asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from rlkit.types import Prompt, Rollout, SamplingConfig


class StreamRequest(NamedTuple):
    """This asks for one completion."""

    key: int
    """The caller's number of it."""
    prompt: Prompt
    seed: int


class StreamSource(Protocol):
    """It says what to sample next, given what has ended."""

    def more(self, ended: Sequence[tuple[int, Rollout]], *, idle: bool) -> Sequence[StreamRequest]:
        """Return further completions to sample, several times a second at least.

        Args:
            ended: Completions that have ended since the last call, with their keys.
            idle: Whether the engine has nothing to do; none returned then ends the stream.
        """


@runtime_checkable
class StreamGenerator(Protocol):
    """A generator that takes completions while it decodes others; vLLM in this process is one."""

    def stream(self, source: StreamSource, *, sampling: SamplingConfig) -> None:
        """Sample what `source` asks for, until it asks for nothing more."""
