"""An environment's worker is the process in which it runs, so that it can be killed.

It reads one call at a time from a socket and answers on the same socket. What the environment
prints goes to a pipe that the parent drains.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from rlkit.environments.base import Action, Example, Message, Turn
from rlkit.environments.load import LoadedEnvironment, load
from rlkit.rewards.keeper import work_under_a_keeper
from rlkit.rewards.wire import describe, frame, receive
from rlkit.runtime.lifeline import die_with_parent

_MOST_CHARACTERS = 1 << 20
"""Characters of a turn's messages. The trainer encodes them; no context holds as many tokens."""
_MOST_STATE = 1 << 24
"""Characters of a state as JSON; the trainer holds one for every episode."""


def main(channel_fd: int, lifeline_fd: int, memory_bytes: int) -> None:
    """Load the environment of the first message, then serve calls until the socket closes.

    `memory_bytes` bounds the address space; 0 = no limit.
    """
    if sys.platform == "linux":
        work_under_a_keeper(lifeline_fd, close=(channel_fd,))
    die_with_parent(lifeline_fd)
    channel = socket.socket(fileno=channel_fd)
    buffer = bytearray()
    hello = receive(channel, buffer)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        loaded = load(hello["fn"], hello["options"])
    except ValueError as error:
        channel.sendall(frame({"error": str(error)}))
        return
    channel.sendall(frame({"roles": loaded.roles, "tools": loaded.tools}))
    pid = os.getpid()
    while (call := receive(channel, buffer)) is not None:
        began = time.monotonic()
        reply = {**answer(loaded, call), "seconds": time.monotonic() - began}
        if os.getpid() != pid:  # the environment forked, and this is the copy
            os._exit(0)
        channel.sendall(frame(reply))


def answer(loaded: LoadedEnvironment, call: Mapping[str, Any]) -> dict[str, Any]:
    """Make one call of `start` or `step`; say what came of it, whatever it raises or returns."""
    hide = loaded.redactor.text
    try:
        if "example" in call:
            returned = loaded.environment.start(_example(call["example"]), call["seed"])
        else:
            text, ids, number = call["action"]
            action = Action(text, tuple(ids), number)
            returned = loaded.environment.step(json.loads(call["state"]), action)
        return _checked(returned)
    except MemoryError:
        return {"raised": "MemoryError: environment.memory_mb is used up", "spent": True}
    except OSError as error:  # out of files, as after a leak: another process may have some
        return {"raised": describe(error, hide), "spent": True}
    except BaseException as error:  # a SystemExit of the environment must not end the worker
        return {"raised": describe(error, hide)}


def _example(message: Mapping[str, Any]) -> Example:
    prompt = message["prompt"]
    if not isinstance(prompt, str):
        prompt = tuple(Message(str(m["role"]), str(m["content"])) for m in prompt)
    return Example(prompt=prompt, columns=message["columns"])


def _checked(returned: Any) -> dict[str, Any]:
    """Return the state as text and the turn as JSON; raise TypeError for anything else."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Turn)):
        raise TypeError(f"must return (state, Turn), got {returned!r:.80}")
    state, turn = returned
    messages = tuple(turn.messages)
    for message in messages:
        text = isinstance(message, Message) and isinstance(message.content, str)
        if not text or message.role not in ("user", "tool"):
            raise TypeError(f"messages must be Message of role user or tool, got {message!r:.80}")
    characters = sum(len(message.content) for message in messages)
    if characters > _MOST_CHARACTERS:
        rule = f"messages must have at most {_MOST_CHARACTERS} characters"
        raise ValueError(f"{rule}, got {characters}")
    info = {str(key): float(value) for key, value in turn.info.items()}
    numbers = [*info.values(), *([] if turn.reward is None else [float(turn.reward)])]
    if not all(map(math.isfinite, numbers)):
        raise TypeError(f"reward and info must be finite, got {turn.reward!r} and {info!r:.80}")
    return {
        "state": _state(state),
        "messages": [[message.role, message.content] for message in messages],
        "reward": None if turn.reward is None else float(turn.reward),
        "done": bool(turn.done),
        "info": info,
    }


def _state(state: object) -> str:
    text = json.dumps(state, allow_nan=False)
    if len(text) > _MOST_STATE:
        rule = f"a state must have at most {_MOST_STATE} characters of JSON"
        raise ValueError(f"{rule}, got {len(text)}")
    return text
