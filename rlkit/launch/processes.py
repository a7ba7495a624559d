"""The launcher's end of the fork server starts and signals jobs and hears of their ends.

It never blocks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.launch.birth import boot
from rlkit.launch.fork_server import MESSAGE_BYTES, Preload
from rlkit.launch.leases import Lease


class Started(NamedTuple):
    """The process of a job is there."""

    job: str
    pid: int


class Refused(NamedTuple):
    """The system had no process for a job."""

    job: str
    reason: str


class Exited(NamedTuple):
    """The process of a job is gone; `code` is negative for a signal."""

    pid: int
    code: int
    cpu_seconds: float


class Lost(NamedTuple):
    """The fork server died and took its jobs along."""


Event = Started | Refused | Exited | Lost


class Processes:
    """This object holds all processes of a launcher and starts a fork server when there is none."""

    def __init__(self, *, preload: Preload, log: Path) -> None:
        self._preload = preload
        self._log = log
        self._channel, self._fork_server = self._new()

    def start(
        self,
        job: str,
        *,
        packed: str,
        folder: Path,
        environ: Mapping[str, str],
        fresh: bool,
        leases: Sequence[Lease] = (),
    ) -> None:
        """Ask for the process of a job; a Started or Refused answers. It shares the leases.

        Args:
            job: The id of the job.
            packed: Its configuration, as `pack` makes it.
            folder: Its folder; it must exist.
            environ: Environment variables to set.
            fresh: Whether a new interpreter replaces the fork.
            leases: The shares of cards that the process holds as well.
        """
        order = {
            "id": job,
            "config": packed,
            "folder": str(folder),
            "environ": dict(environ),
            "fresh": fresh,
        }
        self._send(order, [lease.descriptor for lease in leases])

    def signal(self, pid: int, number: signal.Signals, *, group: bool) -> None:
        """Signal a job, or its whole process group; nothing happens when it is gone."""
        self._send({"pid": pid, "signal": int(number), "group": group}, [])

    def events(self, *, timeout_s: float) -> list[Event]:
        """Return the events since the last call; waits up to `timeout_s` for the first one."""
        found: list[Event] = []
        self._channel.settimeout(timeout_s)
        while True:
            try:
                message = self._channel.recv(MESSAGE_BYTES)
            except (TimeoutError, BlockingIOError):
                return found
            except OSError:
                message = b""
            if not message:
                self._restart()
                return [*found, Lost()]
            found += _event(json.loads(message))
            self._channel.settimeout(0)

    def close(self) -> None:
        """End the fork server and with it every job that is left."""
        self._channel.close()
        self._fork_server.kill()
        self._fork_server.wait()

    def _send(self, order: Mapping[str, Any], descriptors: list[int]) -> None:
        self._channel.settimeout(60)  # a fork server that is importing answers later, not never
        try:
            socket.send_fds(self._channel, [json.dumps(order).encode()], descriptors)
        except OSError:
            return  # the next `events` finds the fork server gone

    def _restart(self) -> None:
        self.close()
        time.sleep(1)  # what killed it may still be there
        self._channel, self._fork_server = self._new()

    def _new(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        with theirs, self._log.open("ab") as log:
            arguments = (str(theirs.fileno()), str(os.getpid()), self._preload.value)
            server = subprocess.Popen(
                boot("rlkit.launch.fork_server", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the launcher
            )
        return ours, server


def _event(reply: dict[str, Any]) -> list[Event]:
    if "started" in reply:
        return [Started(reply["started"], reply["pid"])]
    if "refused" in reply:
        return [Refused(reply["refused"], reply["error"])]
    if "exited" in reply:
        return [Exited(reply["exited"], reply["code"], reply["cpu_seconds"])]
    return []
