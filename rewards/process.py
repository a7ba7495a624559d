"""This module spawns a reward worker, talks to it without blocking, and kills it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewards.printed import Collected, without_marks
from rlkit.rewards.wire import NOT_STARTED, PROGRESS, Failure, Reply, Unit, frame, unframe
from rlkit.runtime.redact import Redactor

# The worker imports what this process would, whichever way rlkit and the user's modules came onto
# the path. It finds modules of the current folder after all others.
_BOOT = (
    "import json, sys; "
    "sys.path += [p for p in [*json.loads(sys.argv[1]), ''] if p not in sys.path]; "
    "from rlkit.rewards.worker import main; "
    "main(*map(int, sys.argv[2:]))"
)
_TAIL_BYTES = 2000
_KEEPER_S = 2.0
"""Seconds for `rlkit.rewards.keeper` to end what a worker has started."""


class Worker:
    """A worker serves one request at a time. Its methods never block, except `join`.

    Attributes are read by the pool: `units` are still to be answered; `per_sample` is None until
    the functions are loaded.
    """

    def __init__(self, functions: Sequence[Mapping[str, Any]], *, max_memory_bytes: int) -> None:
        self.per_sample: list[bool] | None = None
        self.units: list[Unit] = []
        self.printed = 0
        self.gone = False
        self.load_error: str | None = None
        self.clock = time.monotonic()
        self._redactor = Redactor.collect(environ=os.environ, config={"functions": list(functions)})
        self._num_units = 0
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._tail = b""
        self.said = Collected()
        self._channel, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        self._channel.setblocking(False)
        with tempfile.TemporaryFile() as shared, theirs:
            shared.truncate(PROGRESS.size)
            self._progress = mmap.mmap(shared.fileno(), PROGRESS.size)
            fds = (theirs.fileno(), lifeline, shared.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", _BOOT, json.dumps(sys.path), *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for the trainer; a kill takes children along
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        os.close(lifeline)
        os.close(output)
        self._send({"functions": list(functions), "max_memory_bytes": max_memory_bytes})

    @property
    def fds(self) -> tuple[int, int]:
        """Return the files to wait on for reading: the socket and the functions' output."""
        return self._channel.fileno(), self._output

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Return whether it can take a request."""
        return self.per_sample is not None and not self.units and not self.gone

    @property
    def sending(self) -> bool:
        """Return whether part of the request is unwritten: then wait on the socket for writing."""
        return bool(self._outgoing)

    @property
    def current(self) -> int | None:
        """Return the position in `units` of the call that it makes; None before the first one."""
        (position,) = PROGRESS.unpack_from(self._progress, 0)
        current: int = position - (self._num_units - len(self.units))
        return current if position != NOT_STARTED and 0 <= current < len(self.units) else None

    @property
    def tail(self) -> str:
        """Return the end of what the functions printed, on one line."""
        text = without_marks(self._tail.decode("utf-8", errors="replace"))
        text = self._redactor.text(text)  # before it is cut
        return " ".join(text.split())[-300:]

    def submit(self, units: Sequence[Unit], groups: Mapping[int, object]) -> None:
        """Ask for `units`, given the encoded `groups` that they need."""
        self.units = list(units)
        self._num_units = len(units)
        PROGRESS.pack_into(self._progress, 0, NOT_STARTED)
        self.printed = 0
        self.clock = time.monotonic()
        self._send({"groups": {str(key): group for key, group in groups.items()}, "units": units})

    def flush(self) -> None:
        """Write as much of the request as the socket takes."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing)]

    def read_output(self) -> None:
        """Drain what the functions printed; keep the end, count the rest."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # a function that never stops printing must not keep us here
                data = os.read(self._output, 1 << 16)
                if not data:
                    break
                self.printed += len(data)
                self.said.add(data)
                self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def read_replies(self) -> list[tuple[Unit, Reply]]:
        """Return the calls answered since the last look; set `gone` when the process ended."""
        try:
            while data := self._channel.recv(1 << 18):
                self._incoming += data
            self.gone = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.gone = True
        replies = []
        for message in unframe(self._incoming):
            self.clock = time.monotonic()
            if isinstance(message, dict):
                self.per_sample = message.get("per_sample")
                self.load_error = message.get("error")
                continue
            self.printed = 0
            if len(message) > len(self.units):
                self.gone = True  # a function forked, and the copy answers too
                break
            for seconds, values, problems in message:
                known = [(position, Failure(kind), text) for position, kind, text in problems]
                replies.append((self.units.pop(0), Reply(seconds, values, known)))
        return replies

    def kill(self) -> tuple[Failure, str]:
        """End the process and its descendants at once; return how it ended, if by itself."""
        if self._process.returncode is None:
            if self.gone:  # the socket closes a moment before the process has ended
                self.join(seconds=0.5)
            self.read_output()
            os.close(self._lifeline)  # its keeper ends all of them, those in other sessions too
            self.join(seconds=_KEEPER_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self._channel.close()
            self._progress.close()
            os.close(self._output)
        code = self._process.returncode
        if code < 0:
            return Failure.killed, f"died of signal {signal.Signals(-code).name}"
        return Failure.exited, f"exited with code {code}"

    def hang_up(self) -> None:
        """Ask an idle worker to end by itself; `join`, then `kill`."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def join(self, *, seconds: float) -> None:
        """Wait for the end, without reaping: until then nobody else can get the process id."""
        if self._process.returncode is not None:
            return
        give_up = time.monotonic() + seconds
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        with contextlib.suppress(ChildProcessError):  # somebody waited for all children
            while os.waitid(os.P_PID, self.pid, flags) is None and time.monotonic() < give_up:
                time.sleep(0.002)

    def _send(self, message: object) -> None:
        self._outgoing += frame(message)
        self.flush()


def wait_for(workers: Sequence[Worker], *, until: float) -> None:
    """Sleep until a worker says something, or until the deadline (monotonic seconds)."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            channel, output = worker.fds
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.sending else 0)
            selector.register(channel, events)
            selector.register(output, selectors.EVENT_READ)
        selector.select(timeout=max(0.0, until - time.monotonic()) + 0.001)
    for worker in workers:
        if worker.sending:
            worker.flush()
