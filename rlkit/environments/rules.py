"""These are the rules of an episode: what its next turn is, and what an answer makes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rlkit.environments.base import Action, Message
from rlkit.environments.branch import follow
from rlkit.environments.config import CutTurn, EnvironmentConfig
from rlkit.environments.live import LiveEpisode
from rlkit.environments.pool import Answer, Continue, Fault
from rlkit.environments.splice import Splicer
from rlkit.generation.base import turn_seed
from rlkit.generation.stream import StreamRequest
from rlkit.types import EpisodeEnd, Prompt, Rollout

_log = logging.getLogger(__name__)


class Rules:
    """The rules of a run's episodes; they change episodes one at a time and keep nothing."""

    def __init__(
        self,
        splicer: Splicer,
        config: EnvironmentConfig,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._splicer = splicer
        self._config = config
        self._decode = decode
        self._cut_at = config.max_turn_tokens if config.cut_turns is CutTurn.answer else None

    def next_turn(self, one: LiveEpisode, key: int, most_tokens: int) -> StreamRequest:
        """Return the next turn of an episode that may have `most_tokens` tokens in all."""
        prompt = one.next_prompt(limit=self.limit(most_tokens - len(one.ids)))
        return StreamRequest(key, prompt, turn_seed(one.seed, len(one.turns)))

    def limit(self, left: int) -> int:
        """Return the most tokens of a turn of an episode that has `left` tokens left."""
        most = self._config.max_turn_tokens
        return left if most is None else min(left, most)

    def take(self, one: LiveEpisode, turn: Rollout) -> None:
        """Append a turn as it was sampled."""
        one.take(turn, cut_at=self._cut_at)

    def question(self, one: LiveEpisode) -> Continue:
        """Return the last turn as the environment is asked about it."""
        turn = one.turns[-1]
        ids = tuple(one.ids[turn.start : turn.stop])
        assert one.state is not None
        return Continue(one.state, Action(self._decode(ids), ids, len(one.turns) - 1))

    def hear(
        self, one: LiveEpisode, asked: Continue, answer: Answer | Fault, most_tokens: int
    ) -> None:
        """Note what the environment answers: the episode ends, or reads on.

        Args:
            one: The episode.
            asked: What the environment was asked.
            answer: What it answered.
            most_tokens: Most tokens of an episode after its prompt.
        """
        one.seconds += answer.seconds
        if isinstance(answer, Fault):
            warn(one.prompt, answer)
            one.end = EpisodeEnd.failed
            return
        said = answer.turn
        one.state = answer.state
        one.turns[-1] = one.turns[-1]._replace(reward=said.reward, info=said.info)
        one.end = self._end(one, done=said.done)
        if one.end is None:
            self._go_on(one, asked.action.text, said.messages, most_tokens)

    def _go_on(
        self, one: LiveEpisode, said: str, messages: Sequence[Message], most_tokens: int
    ) -> None:
        """Append what the model reads before its next turn, if there is room for one."""
        after, shown = one.ids[-1], one.shown
        if shown is None:
            ids, afresh = self._splicer.between(messages, after=after), False
        else:
            one.shown, ids, afresh = follow(self._splicer, shown, said, messages, after=after)
        if len(one.ids) + len(ids) >= most_tokens:
            one.end = EpisodeEnd.context
        else:
            one.splice(ids, afresh=afresh)

    def _end(self, live: LiveEpisode, *, done: bool) -> EpisodeEnd | None:
        if done:
            return EpisodeEnd.done
        if len(live.turns) >= self._config.max_turns:
            return EpisodeEnd.turns
        if live.seconds > self._config.episode_timeout_s:
            return EpisodeEnd.seconds
        return None


def warn(prompt: Prompt, fault: Fault) -> None:
    """Say in the log that the environment failed."""
    _log.warning(
        "the environment failed in an episode of prompt %d (%s): %s",
        prompt.index,
        fault.kind,
        fault.message,
    )
