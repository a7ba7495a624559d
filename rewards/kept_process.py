"""This module spawns a process under a keeper, talks to it without blocking, and kills it.

The process runs code of a user's: reward functions or an environment. It speaks JSON over a socket,
and what it prints goes to a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from rlkit.rewards.wire import frame, unframe

# The worker imports what this process would, whichever way rlkit and the user's modules came onto
# the path. It finds modules of the current folder after all others.
_BOOT = (
    "import json, sys; "
    "sys.path += [p for p in [*json.loads(sys.argv[1]), ''] if p not in sys.path]; "
    "from {module} import main; "
    "main(*map(int, sys.argv[2:]))"
)
_TAIL_BYTES = 2000
_KEEPER_S = 2.0
"""Seconds for `rlkit.rewards.keeper` to end what a worker has started."""


class KeptProcess:
    """A worker process with its socket and its output. Its methods never block, except `join`."""

    def __init__(self, module: str, *arguments: int, pass_fds: Sequence[int] = ()) -> None:
        """Start `main(channel, lifeline, *arguments)` of `module`.

        Args:
            module: A module that calls `work_under_a_keeper`.
            arguments: Numbers that `main` takes after its two files.
            pass_fds: Those of them that are files.
        """
        self.gone = False
        """Whether the socket has closed at the other end."""
        self.clock = time.monotonic()
        """When the process was last given something to do."""
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
            numbers = map(str, (*fds, *arguments))
            boot = _BOOT.format(module=module)
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", boot, json.dumps(sys.path), *numbers],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(*fds, *pass_fds),
                start_new_session=True,  # Ctrl-C is for the trainer; a kill takes children along
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        os.close(lifeline)
        os.close(output)

    @property
    def fds(self) -> tuple[int, int]:
        """Return the files to wait on for reading: the socket and the process's output."""
        return self._channel.fileno(), self._output

    @property
    def pid(self) -> int:
        """Return the process id, that of the keeper."""
        return self._process.pid

    @property
    def sending(self) -> bool:
        """Return whether part of a message is unwritten: then wait on the socket for writing."""
        return bool(self._outgoing)

    def send(self, message: object) -> None:
        """Send a message; what the socket does not take now is for `flush`."""
        self._outgoing += frame(message)
        self.flush()

    def flush(self) -> None:
        """Write as much as the socket takes."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing)]

    def read_output(self) -> None:
        """Drain what the process printed."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # code that never stops printing must not keep us here
                data = os.read(self._output, 1 << 16)
                if not data:
                    break
                self.hear(data)

    def hear(self, data: bytes) -> None:
        """Take a piece of what was printed: its end is kept."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def messages(self) -> list[Any]:
        """Return what the process has sent; set `gone` when it ended."""
        try:
            while data := self._channel.recv(1 << 18):
                self._incoming += data
            self.gone = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.gone = True
        return unframe(self._incoming)

    def end(self) -> int:
        """End the process and its descendants at once; return its code, if it ended by itself."""
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
            os.close(self._output)
        return self._process.returncode

    def hang_up(self) -> None:
        """Ask an idle process to end by itself; `join`, then `end`."""
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


def ending(code: int) -> str:
    """Return in words how a process ended, from its return code."""
    if code < 0:
        return f"died of signal {signal.Signals(-code).name}"
    return f"exited with code {code}"


def wait_for(processes: Sequence[KeptProcess], *, until: float) -> None:
    """Sleep until a process says something, or until the deadline (monotonic seconds)."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            channel, output = process.fds
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.sending else 0)
            selector.register(channel, events)
            selector.register(output, selectors.EVENT_READ)
        selector.select(timeout=max(0.0, until - time.monotonic()) + 0.001)
    for process in processes:
        if process.sending:
            process.flush()
