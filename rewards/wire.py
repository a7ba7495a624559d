"""Trainer and reward worker are joined by length-prefixed JSON, without pickle or torch.

Token ids travel as base64 of little-endian int32 (a JSON list of numbers is ten times slower). The
worker sees copies of `rlkit.types.Prompt` and `Completion` with the same fields, because importing
`rlkit.types` would import torch.
"""

from __future__ import annotations

import base64
import json
import math
import os
import socket
import struct
import sys
import traceback
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, overload

if TYPE_CHECKING:
    from rlkit import types

LENGTH = struct.Struct("<I")
PROGRESS = struct.Struct("<i")
NOT_STARTED = -1
WHOLE_GROUP = -1
_MAX_MESSAGE = 300
MAX_REWARD = 1e6
"""The largest absolute value of a reward. Advantages are float32: squares of 1e19 overflow there,
and beside 1e8 a difference of 1 is lost. Gradients would be exactly 0, without a word."""


class Failure(StrEnum):
    """This names the reason why a reward function gave no value for a sample."""

    raised = "raised"
    """It raised an exception."""
    timeout = "timeout"
    """It was killed at its deadline, or raised TimeoutError."""
    killed = "killed"
    """Its process died of a signal, as after a segmentation fault."""
    exited = "exited"
    """Its process exited."""
    wrong_length = "wrong_length"
    """It returned more or fewer values than samples."""
    wrong_type = "wrong_type"
    """It returned no sequence, or a value that is no number."""
    not_finite = "not_finite"
    """It returned NaN or an infinity."""
    too_large = "too_large"
    """It returned a number beyond `MAX_REWARD`."""
    memory = "memory"
    """It wanted more memory than `reward.max_memory`."""
    output = "output"
    """It was killed because it printed more than `reward.max_output_bytes`."""
    unreachable = "unreachable"
    """A judge's endpoint could not be reached, or broke the connection."""
    rate_limited = "rate_limited"
    """It kept answering 429."""
    refused = "refused"
    """It answered with another status than 200."""
    bad_reply = "bad_reply"
    """It answered what is no chat completion."""
    no_verdict = "no_verdict"
    """The judge's reply holds no verdict."""
    not_cached = "not_cached"
    """Only the cache may be asked, and it has no reply."""


class Unit(NamedTuple):
    """A unit is one call of one reward function."""

    function: int
    group: int
    sample: int = WHOLE_GROUP
    """Position in the group, or WHOLE_GROUP for functions that see the group at once."""


class Reply(NamedTuple):
    """A reply holds what one call gave."""

    seconds: float
    values: list[float | None]
    """One for each sample of the call; None = not applicable. Empty when the call failed."""
    problems: list[tuple[int, Failure, str]]
    """(position, kind, message); position WHOLE_GROUP when the whole call failed."""


class Ids(Sequence[int]):
    """Token ids are unpacked when somebody looks: most rewards only read the text."""

    __slots__ = ("_ids", "_packed")

    def __init__(self, packed: str) -> None:
        self._packed = packed
        self._ids: array[int] | None = None

    def _unpacked(self) -> array[int]:
        if self._ids is None:
            self._ids = array("i")
            self._ids.frombytes(base64.b64decode(self._packed))
            if sys.byteorder == "big":
                self._ids.byteswap()
        return self._ids

    def __len__(self) -> int:
        return len(self._unpacked())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self._unpacked()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._unpacked())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class WirePrompt:
    """This is the worker's copy of `rlkit.types.Prompt`."""

    index: int
    ids: Sequence[int]
    text: str
    columns: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    key: str
    limit: int | None


class WireTurn(NamedTuple):
    """This is the worker's copy of `rlkit.types.TurnRecord`."""

    start: int
    stop: int
    reward: float | None
    info: Mapping[str, float]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WireEpisode:
    """This is the worker's copy of `rlkit.types.Episode`; `end` is plain text."""

    turns: tuple[WireTurn, ...]
    end: str

    @property
    def reward(self) -> float:
        """Return the sum of the turns' rewards, 0 without any; NaN when the environment failed."""
        if self.end == "failed":
            return math.nan
        return math.fsum(turn.reward for turn in self.turns if turn.reward is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireCompletion:
    """This is the worker's copy of `rlkit.types.Completion`; `finish_reason` is plain text."""

    prompt: WirePrompt
    text: str
    ids: Sequence[int]
    finish_reason: str
    episode: WireEpisode | None = None


def frame(message: object) -> bytes:
    """Return `message` as JSON behind its length."""
    body = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return LENGTH.pack(len(body)) + body


def unframe(buffer: bytearray) -> list[Any]:
    """Remove the complete messages from the front of `buffer`."""
    messages = []
    position = 0
    while len(buffer) - position >= LENGTH.size:
        (size,) = LENGTH.unpack_from(buffer, position)
        end = position + LENGTH.size + size
        if len(buffer) < end:
            break
        messages.append(json.loads(bytes(buffer[position + LENGTH.size : end])))
        position = end
    del buffer[:position]
    return messages


def receive(channel: socket.socket, buffer: bytearray) -> Any:
    """Return the next message, or None when the parent has closed the socket."""
    while not (messages := unframe(buffer)):
        data = channel.recv(1 << 20)
        if not data:
            return None
        buffer += data
    return messages[0]  # the parent sends one request at a time


def describe(error: BaseException, hide: Callable[[str], str]) -> str:
    """Return `Type: text (file:line)` on one line, its text after `hide`, which masks secrets."""
    try:
        # Hidden before it is cut: half a secret is one too.
        text = hide(str(error))[:_MAX_MESSAGE]
    except Exception:  # an exception class of the user's with a broken __str__
        text = "(no text)"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {text}".split()) + where


def encode_group(group: Sequence[types.Completion]) -> dict[str, Any]:
    """Return one prompt's completions for sending; the prompt is in it once."""
    if not group:
        return {"prompt": None, "samples": []}
    prompt = group[0].prompt
    return {
        "prompt": [
            prompt.index,
            _encode_ids(prompt.ids),
            prompt.text,
            dict(prompt.columns),
            prompt.messages,
            prompt.key,
            prompt.limit,
        ],
        "samples": [
            [c.text, _encode_ids(c.ids), str(c.finish_reason), _encode_episode(c.episode)]
            for c in group
        ],
    }


def decode_group(message: Mapping[str, Any]) -> tuple[WireCompletion, ...]:
    """Undo `encode_group`; a tuple, so that no function can change the next one's input."""
    if not message["samples"]:
        return ()
    index, ids, text, columns, messages, key, limit = message["prompt"]
    prompt = WirePrompt(
        index=index,
        ids=Ids(ids),
        text=text,
        columns=columns,
        messages=messages,
        key=key,
        limit=limit,
    )
    return tuple(
        WireCompletion(
            prompt=prompt,
            text=sampled,
            ids=Ids(ids),
            finish_reason=finish_reason,
            episode=_decode_episode(episode),
        )
        for sampled, ids, finish_reason, episode in message["samples"]
    )


def _encode_episode(episode: types.Episode | None) -> list[Any] | None:
    if episode is None:
        return None
    turns = [[t.start, t.stop, t.reward, dict(t.info), t.text] for t in episode.turns]
    return [str(episode.end), turns]


def _decode_episode(message: list[Any] | None) -> WireEpisode | None:
    if message is None:
        return None
    end, turns = message
    return WireEpisode(turns=tuple(WireTurn._make(turn) for turn in turns), end=end)


def _encode_ids(ids: Sequence[int]) -> str:
    return base64.b64encode(struct.pack(f"<{len(ids)}i", *ids)).decode("ascii")
