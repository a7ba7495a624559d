"""This is a bridge for environments with a memory of their own, such as Gymnasium's.

A session lives in a process and cannot be a value. What was said to it can. The state of an episode
is its seed and the model's turns so far, and any worker can play them again to a new session. The
last sessions of a worker are kept, so that playing again is the exception.

    class Mine(SessionEnvironment):
        def open(self, columns):
            return SomeGame(columns["level"])
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict

from rlkit.environments.base import Action, Example, Message, Turn


class StatefulSession(Protocol):
    """It follows Gymnasium: equal seeds and actions must give equal answers."""

    def reset(self, *, seed: int) -> tuple[object, Mapping[str, Any]]:
        """Begin; return the first observation and further facts."""

    def step(self, action: str, /) -> tuple[object, float, bool, bool, Mapping[str, Any]]:
        """Return observation, reward, terminated, truncated and further facts."""


class Played(TypedDict):
    """The state: all that a new session must be told."""

    seed: int
    columns: dict[str, Any]
    said: list[str]


class _Kept(NamedTuple):
    session: Any
    first: object


class SessionEnvironment:
    """It plays the turns of an episode to a session; observations become messages."""

    role: ClassVar[str] = "user"
    """The role of observations: `user` or `tool`."""
    most_kept: ClassVar[int] = 256
    """Sessions that a worker keeps; the one that waited longest is closed when there are more."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the one role of the messages."""
        return (self.role,)

    def open(self, columns: Mapping[str, Any]) -> StatefulSession:
        """Return a new session for an example; overridden by every environment."""
        raise NotImplementedError("a SessionEnvironment must have open(columns)")

    def action_of(self, text: str) -> Any:
        """Return the action for what the model said: the text itself, unless overridden."""
        return text

    def messages_of(self, observation: Any) -> tuple[Message, ...]:
        """Return an observation as the model reads it; an empty text is no message."""
        text = observation if isinstance(observation, str) else json.dumps(observation, default=str)
        return (Message(self.role, text),) if text else ()

    def start(self, example: Example, seed: int) -> tuple[Played, Turn]:
        """Begin a session; its first observation follows the prompt, unless it is empty."""
        state: Played = {
            "seed": seed % 2**31,  # what Gymnasium's generators take
            "columns": dict(example.columns),
            "said": [],
        }
        kept = self._begun(state)
        self._keep(state, kept)
        return state, Turn(self.messages_of(kept.first))

    def step(self, state: Played, action: Action) -> tuple[Played, Turn]:
        """Tell the session what the model said."""
        kept = self._take(state)
        try:
            answer = kept.session.step(self.action_of(action.text))
        except Exception:
            _close(kept.session)
            raise
        observation, reward, ended, cut, facts = answer
        following: Played = {**state, "said": [*state["said"], action.text]}
        done = bool(ended or cut)
        if done:
            _close(kept.session)
        else:
            self._keep(following, kept)
        numbers = {k: float(v) for k, v in facts.items() if isinstance(v, (bool, int, float))}
        messages = () if done else self.messages_of(observation)
        return following, Turn(messages, reward=float(reward), done=done, info=numbers)

    def _begun(self, state: Played) -> _Kept:
        session = self.open(state["columns"])
        first, _ = session.reset(seed=state["seed"])
        return _Kept(session, first)

    def _take(self, state: Played) -> _Kept:
        """Return the session that stands where `state` says, for one step: no other may use it."""
        kept = self._kept.pop(_key(state), None)
        if kept is None:
            kept = self._begun(state)
            for said in state["said"]:
                kept.session.step(self.action_of(said))
        return kept

    def _keep(self, state: Played, kept: _Kept) -> None:
        if (other := self._kept.pop(_key(state), None)) is not None:
            _close(other.session)  # another sample has said the same
        self._kept[_key(state)] = kept
        while len(self._kept) > self.most_kept:
            _close(self._kept.popitem(last=False)[1].session)


def _key(state: Played) -> str:
    return json.dumps(state, sort_keys=True)


def _close(session: Any) -> None:
    """Close a session that has `close`, as those of Gymnasium have."""
    if callable(close := getattr(session, "close", None)):
        close()
