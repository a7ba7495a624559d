"""In a stream the next turn of an episode joins the engine while other episodes still decode.

One slow episode holds nobody up. The environment answers in its processes while the engine works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rlkit.environments.live import LiveEpisode
from rlkit.environments.pool import Continue, EnvironmentPool
from rlkit.environments.rules import Rules
from rlkit.generation.stream import StreamRequest
from rlkit.types import Rollout

_PATIENCE_S = 0.01
"""Seconds that an engine at work waits for answers. One burst is in the air meanwhile, and turns
that join together cost one step of vLLM's scheduler instead of one each."""
_IDLE_S = 0.2
"""Seconds between two signs of life while there is nothing to decode."""


class TurnStream:
    """It implements `rlkit.generation.stream.StreamSource` with the turns of some episodes."""

    def __init__(
        self,
        episodes: Sequence[LiveEpisode],
        pool: EnvironmentPool,
        rules: Rules,
        *,
        most_tokens: int,
        pulse: Callable[[], None],
    ) -> None:
        """Play `episodes`, none of which has a turn yet.

        Args:
            episodes: Their environments have begun.
            pool: The environment's workers.
            rules: What becomes of a turn and of an answer.
            most_tokens: Most tokens of an episode after its prompt.
            pulse: Called while the environment works; what it raises ends the stream.
        """
        self._episodes = episodes
        self._rules = rules
        self._most_tokens = most_tokens
        self._pulse = pulse
        self._calls = pool.open()
        self._asked: dict[int, Continue] = {}
        self._unsampled = list(range(len(episodes)))

    def more(self, ended: Sequence[tuple[int, Rollout]], *, idle: bool) -> Sequence[StreamRequest]:
        """Give the turns that can be sampled now; when `idle`, wait until there is one.

        Args:
            ended: Turns that were sampled, by the number of their episode.
            idle: Whether the engine has nothing to do.

        Returns:
            The next turns; none when `idle` means that all episodes have ended.
        """
        for number, rollout in ended:
            self._take(number, rollout)
        ready, self._unsampled = self._unsampled, []
        while self._calls.count and idle and not ready:
            ready += self._hear(seconds=_IDLE_S)
        give_up = time.monotonic() + _PATIENCE_S
        while self._calls.count and (left := give_up - time.monotonic()) > 0:
            ready += self._hear(seconds=left)
        return [self._next(number) for number in ready]

    def _take(self, number: int, rollout: Rollout) -> None:
        one = self._episodes[number]
        self._rules.take(one, rollout)
        if one.end is None:
            self._asked[number] = self._rules.question(one)
            self._calls.add(number, self._asked[number])

    def _hear(self, *, seconds: float) -> list[int]:
        """Hear the environment's answers; return the episodes that go on."""
        found = self._calls.look(seconds=seconds)
        self._pulse()
        for number, answer in found.items():
            asked = self._asked.pop(number)
            self._rules.hear(self._episodes[number], asked, answer, self._most_tokens)
        return [number for number in found if self._episodes[number].end is None]

    def _next(self, number: int) -> StreamRequest:
        return self._rules.next_turn(self._episodes[number], number, self._most_tokens)
