"""A function of the user's is called in a child process: with a deadline, limits and a clean end.

The worker of an environment has one thread, so a fork is safe, and it costs a millisecond. The
child gets a session of its own, in which everything that it starts is killed with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MAX_RESULT = 1 << 16
"""Bytes of a result that are read; what a model can use is far shorter."""


class Limits(NamedTuple):
    """These are the limits of one call."""

    seconds: float = 5.0
    """Wall-clock time, > 0; processor time has the same limit, rounded up."""
    memory_mb: int = 512
    """Address space, in MB, >= 64."""
    characters: int = 2000
    """Most characters of a result, >= 1; the rest is cut off and said to be."""


class ToolError(Exception):
    """A call gave no result; the text is for the model."""


def call_limited(function: Callable[..., Any], arguments: Mapping[str, Any], limits: Limits) -> str:
    """Return the result of `function(**arguments)` as text, from a child that cannot outlive us.

    Text is returned as it is, anything else as JSON. Raises ToolError, with one line for the model,
    when the function raises, hangs, crashes or returns what is no JSON.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(function, arguments, limits, readable, writable)
    os.close(writable)
    try:
        data = _read(readable, limits.seconds)
    finally:
        os.close(readable)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data is None:
        raise ToolError(f"no result within {limits.seconds:g} s")
    kind, text = data[:1], data[1:].decode("utf-8", errors="replace")
    if kind == b"+":
        return _cut(text, limits.characters)
    if kind == b"-":
        raise ToolError(_cut(text, limits.characters))
    ended = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-ended).name}" if ended < 0 else f"exit code {ended}"
    raise ToolError(f"the call ended with {how}")


def _in_child(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    limits: Limits,
    readable: int,
    writable: int,
) -> None:
    """Call the function and write what came of it; never returns."""
    try:
        os.setsid()
        os.close(readable)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _limit(limits)
        try:
            result = function(**arguments)
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
            answer = b"+" + text.encode("utf-8", errors="replace")
        except MemoryError:
            answer = b"-MemoryError"
        except ToolError as error:  # the tool has said it in its own words
            answer = b"-" + str(error).encode("utf-8", errors="replace")
        except BaseException as error:  # the user's function, called by a model
            answer = b"-" + _describe(error).encode("utf-8", errors="replace")
        left = memoryview(answer[:_MAX_RESULT])
        while left:
            left = left[os.write(writable, left) :]
    finally:
        os._exit(0)


def _limit(limits: Limits) -> None:
    memory = limits.memory_mb << 20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    seconds = max(1, int(limits.seconds) + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, 1 << 24))


def _read(readable: int, seconds: float) -> bytes | None:
    """Return what the child wrote until it closed the pipe; None when time was up."""
    data, give_up = b"", time.monotonic() + seconds
    while True:
        left = give_up - time.monotonic()
        if left <= 0 or not select.select([readable], [], [], left)[0]:
            return None
        part = os.read(readable, 1 << 16)
        if not part:
            return data
        data += part


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]} ... ({len(text) - most} characters more)"


def _describe(error: BaseException) -> str:
    try:
        return " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # an exception class with a broken __str__
        return type(error).__name__
