"""A reward worker is the process in which reward functions run, so that it can be killed.

It reads requests from a socket and answers on the same socket. What the functions print goes to a
pipe that the parent drains, with the name of each function before its text.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO, cast

from rlkit.rewards.keeper import work_under_a_keeper
from rlkit.rewards.load import LoadedReward, load
from rlkit.rewards.printed import MarkedStream
from rlkit.rewards.wire import (
    MAX_REWARD,
    PROGRESS,
    WHOLE_GROUP,
    Failure,
    Unit,
    WireCompletion,
    decode_group,
    describe,
    frame,
    receive,
)
from rlkit.runtime.lifeline import die_with_parent

_SEND_EVERY_S = 0.005


def main(channel_fd: int, lifeline_fd: int, progress_fd: int) -> None:
    """Load the functions of the first message, then serve requests until the socket closes."""
    if sys.platform == "linux":
        work_under_a_keeper(lifeline_fd, close=(channel_fd, progress_fd))
    die_with_parent(lifeline_fd)
    channel = socket.socket(fileno=channel_fd)
    buffer = bytearray()
    hello = receive(channel, buffer)
    limit = hello["max_memory_bytes"]
    # Of the heap and of private mappings; what a function wants beyond is a MemoryError there.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    stream = MarkedStream(sys.stdout)
    # `print` and `warnings` of a reward function write to these.
    sys.stdout = sys.stderr = cast(TextIO, stream)
    try:
        functions = [load(f["name"], f["fn"], f["options"]) for f in hello["functions"]]
    except ValueError as error:
        channel.sendall(frame({"error": str(error)}))
        return
    channel.sendall(frame({"per_sample": [f.per_sample for f in functions]}))
    with mmap.mmap(progress_fd, PROGRESS.size) as progress:
        while (request := receive(channel, buffer)) is not None:
            _serve(request, functions, channel, progress, stream)


def _serve(
    request: Any,
    functions: Sequence[LoadedReward],
    channel: socket.socket,
    progress: mmap.mmap,
    stream: MarkedStream,
) -> None:
    """Make the calls of a request in order and send their replies, several at a time.

    `progress` tells the parent which call is running, without a system call for each: whom to blame
    when this process dies or hangs. Replies not sent by then are lost, and those calls made again.
    """
    groups = {int(key): decode_group(group) for key, group in request["groups"].items()}
    replies = []
    pid = os.getpid()
    last_sent = time.monotonic()
    for position, unit in enumerate(map(Unit._make, request["units"])):
        PROGRESS.pack_into(progress, 0, position)
        stream.function = functions[unit.function].name
        group = groups[unit.group]
        samples = group if unit.sample == WHOLE_GROUP else (group[unit.sample],)
        replies.append(evaluate(functions[unit.function], samples))
        if os.getpid() != pid:  # the function forked, and this is the copy: it must not answer too
            os._exit(0)
        if time.monotonic() - last_sent > _SEND_EVERY_S:
            channel.sendall(frame(replies))
            replies = []
            last_sent = time.monotonic()
    if replies:
        channel.sendall(frame(replies))


def evaluate(loaded: LoadedReward, samples: Sequence[WireCompletion]) -> list[Any]:
    """Call one function; return the fields of a `Reply`, whatever it raises or returns."""
    start = time.perf_counter()
    hide = loaded.redactor.text
    try:
        # Values are looked at inside the guard: their types are the user's, with the user's bugs.
        if loaded.per_sample:
            values, problems = _check_values([loaded.function(samples[0])], num_samples=1)
        else:
            values, problems = _check_values(loaded.function(samples), num_samples=len(samples))
    except TimeoutError as error:  # a function with a time limit of its own
        values, problems = [], [(WHOLE_GROUP, Failure.timeout, describe(error, hide))]
    except MemoryError as error:
        values, problems = [], [(WHOLE_GROUP, Failure.memory, describe(error, hide))]
    except BaseException as error:  # a SystemExit of a reward function must not end the worker
        values, problems = [], [(WHOLE_GROUP, Failure.raised, describe(error, hide))]
    return [time.perf_counter() - start, values, problems]


def _check_values(
    returned: Any, *, num_samples: int
) -> tuple[list[float | None], list[tuple[int, Failure, str]]]:
    is_text = isinstance(returned, (str, bytes, dict, set))
    if is_text or not hasattr(returned, "__len__") or not hasattr(returned, "__iter__"):
        message = f"returned {_show(returned)} instead of a list of {num_samples} numbers"
        return [], [(WHOLE_GROUP, Failure.wrong_type, message)]
    if len(returned) != num_samples:
        message = f"returned {len(returned)} values for {num_samples} samples"
        return [], [(WHOLE_GROUP, Failure.wrong_length, message)]
    values: list[float | None] = []
    problems = []
    for position, value in enumerate(returned):
        number = None
        if value is not None:
            kind, number = _number(value)
            if kind is not None:
                beyond = f", beyond +-{MAX_REWARD:.0e}" if kind is Failure.too_large else ""
                problems.append((position, kind, f"returned {_show(value)} for a sample{beyond}"))
        values.append(number)
    return values, problems


def _number(value: Any) -> tuple[Failure | None, float | None]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        return Failure.wrong_type, None
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        return Failure.not_finite, None
    if not math.isfinite(number):
        return Failure.not_finite, None
    return (None, number) if abs(number) <= MAX_REWARD else (Failure.too_large, None)


def _show(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:  # printing it may take minutes
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        value = value[:40]
    elif not isinstance(value, (int, float)) and value is not None:
        return f"a value of type {type(value).__name__}"
    return f"{value!r} ({type(value).__name__})"
