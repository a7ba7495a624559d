"""This module spawns an environment's worker, talks to it without blocking, and kills it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from rlkit.rewards.wire import frame, unframe

# The worker imports what this process would, whichever way rlkit and the user's modules came onto
# the path. It finds modules of the current folder after all others.
_BOOT = (
    "import json, sys; "
    "sys.path += [p for p in [*json.loads(sys.argv[1]), ''] if p not in sys.path]; "
    "from rlkit.environments.worker import main; "
    "main(*map(int, sys.argv[2:]))"
)
_TAIL_BYTES = 2000
_KEEPER_S = 2.0
"""Seconds for `rlkit.rewards.keeper` to end what a worker has started."""


class EnvironmentProcess:
    """A worker makes one call at a time. Its methods never block, except `join`."""

    def __init__(self, fn: str, options: Mapping[str, Any], *, memory_bytes: int) -> None:
        """Start loading `fn`; `memory_bytes` bounds the address space, 0 = no limit."""
        self.hello: Mapping[str, Any] | None = None
        """What the environment says about itself, once it is loaded."""
        self.job: int | None = None
        """The number of the call that it makes."""
        self.calls = 0
        """Calls that it was given."""
        self.gone = False
        self.clock = time.monotonic()
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._tail = b""
        self._channel, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        self._channel.setblocking(False)
        with theirs:
            fds = (theirs.fileno(), lifeline)
            numbers = (*fds, memory_bytes)
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", _BOOT, json.dumps(sys.path), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for the trainer; a kill takes children along
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        os.close(lifeline)
        os.close(output)
        self._send({"fn": fn, "options": dict(options)})

    @property
    def fds(self) -> tuple[int, int]:
        """Return the files to wait on for reading: the socket and what it prints."""
        return self._channel.fileno(), self._output

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Return whether it can take a call."""
        return self.hello is not None and self.job is None and not self.gone

    @property
    def sending(self) -> bool:
        """Return whether part of the call is unwritten: then wait on the socket for writing."""
        return bool(self._outgoing)

    @property
    def tail(self) -> str:
        """Return the end of what the environment printed, on one line."""
        return " ".join(self._tail.decode("utf-8", errors="replace").split())[-300:]

    def submit(self, job: int, call: Mapping[str, Any]) -> None:
        """Ask for one call, whose number is `job`."""
        self.job = job
        self.calls += 1
        self.clock = time.monotonic()
        self._send(call)

    def flush(self) -> None:
        """Write as much of the call as the socket takes."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing)]

    def drain(self) -> None:
        """Read what the environment printed and keep the end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # one that never stops printing must not keep us here
                data = os.read(self._output, 1 << 16)
                if not data:
                    break
                self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def reply(self) -> Mapping[str, Any] | None:
        """Return the answer to the call, None while there is none; set `gone` when it ended."""
        try:
            while data := self._channel.recv(1 << 18):
                self._incoming += data
            self.gone = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.gone = True
        for message in unframe(self._incoming):
            if self.hello is None:
                self.hello = message
            elif self.job is not None:
                self.job = None
                answer: Mapping[str, Any] = message
                return answer
        return None

    def kill(self) -> str:
        """End the process and its descendants at once; return how it ended, if by itself."""
        if self._process.returncode is None:
            if self.gone:  # the socket closes a moment before the process has ended
                self.join(seconds=0.5)
            self.drain()
            os.close(self._lifeline)  # its keeper ends all of them, those in other sessions too
            self.join(seconds=_KEEPER_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self._channel.close()
            os.close(self._output)
        code = self._process.returncode
        if code < 0:
            return f"died of signal {signal.Signals(-code).name}"
        return f"exited with code {code}"

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
