"""All jobs of a launcher are children of this process; the launcher speaks to it from here.

It imports what jobs need once and never touches CUDA. So a fork of it is like a new process that is
10 ms old instead of seconds. It dies with the launcher, and every job dies with it: SIGKILL to the
launcher leaves no orphan. Jobs on a GPU replace the fork by a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlkit.launch.birth import INTERRUPTED, boot, die_with, set_up_job_process
from rlkit.launch.child import run
from rlkit.runtime.signals import STOP_SIGNALS

_MOST_DESCRIPTORS = 253
"""Linux passes no more in one message; each is the lease of a card."""
MESSAGE_BYTES = 1 << 20


class Preload(StrEnum):
    """This choice names the modules that a fork server imports before the first job."""

    nothing = "nothing"
    """Its jobs start from new interpreters."""
    tables = "tables"
    """The modules that a table of logits needs."""
    models = "models"
    """The modules that a language model needs as well: transformers."""


_TABLES = (
    *("rlkit.launch.job", "rlkit.launch.packed", "rlkit.assembly.tabular_run"),
    *("rlkit.runtime.torch_dynamo", "rlkit.tracking.plot", "pyarrow.parquet"),
)
_MODULES = {
    Preload.nothing: (),
    Preload.tables: _TABLES,
    Preload.models: (*_TABLES, "rlkit.assembly.assemble"),
}


def main(descriptor: str, parent: str, preload: str) -> None:
    """Serve the launcher at the other end of a socket until it hangs up."""
    die_with(int(parent))
    # The launcher decides. Blocked rather than ignored: a signal that meets a job between its fork
    # and its handlers waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    channel = socket.socket(fileno=int(descriptor))
    if modules := _MODULES[Preload(preload)]:
        for module in modules:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # keeps the garbage collectors of the jobs off the pages they share
    _ForkServer(channel).serve()


class _ForkServer:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._pid = os.getpid()

    def serve(self) -> None:
        """Start, signal and reap jobs until the launcher hangs up."""
        bell, ringer = os.pipe()
        for end in (bell, ringer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(ringer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._say({"ready": True})
        while True:
            ready, _, _ = select.select([self._channel.fileno(), bell], [], [])
            if bell in ready:
                os.read(bell, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                message, descriptors, _, _ = socket.recv_fds(
                    self._channel, MESSAGE_BYTES, _MOST_DESCRIPTORS
                )
                if not message:
                    sys.exit(0)
                self._handle_order(json.loads(message), descriptors)

    def _handle_order(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        if "signal" in order:
            pid = order["pid"]
            if pid in self._children:  # not reaped, so the number is still its own
                _send_signal(pid, order["signal"], group=order["group"])
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"refused": order["id"], "error": str(error)})
        else:
            if pid == 0:
                self._run_as_job(order, descriptors)
            self._children.add(pid)
            self._say({"started": order["id"], "pid": pid})
        for descriptor in descriptors:
            os.close(descriptor)

    def _run_as_job(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Turn the fork into the job, and never come back."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self._channel.close()
            folder = Path(order["folder"])
            set_up_job_process(folder, parent=self._pid)
            os.environ.update(order["environ"])
            if order["fresh"]:
                for descriptor in descriptors:  # the lease goes along
                    os.set_inheritable(descriptor, True)
                _feed(order["config"])
                command = boot("rlkit.launch.child", str(folder))
                os.execv(command[0], command)
            code = run(order["config"], folder)
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            # As multiprocessing ends its forks: taking down the modules, which the server still
            # needs, would cost a short job a third of its time.
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _reap(self) -> None:
        """Report every child that has ended, after killing what it left of its process group."""
        while self._children:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            pid = ended.si_pid
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            self._children.discard(pid)
            self._say(
                {
                    "exited": pid,
                    "code": os.waitstatus_to_exitcode(status),
                    "cpu_seconds": usage.ru_utime + usage.ru_stime,
                }
            )

    def _say(self, reply: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(reply).encode())
        except OSError:  # the launcher is gone; so are the jobs, a moment from now
            sys.exit(0)


def _feed(text: str) -> None:
    """Make `text` the standard input of this process."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        os.dup2(file.fileno(), 0)


def _send_signal(pid: int, number: int, *, group: bool) -> None:
    """Signal a child, or its process group; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        if group:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # so young that it has no group yet, nor children in one
                os.kill(pid, number)
        else:
            os.kill(pid, number)
