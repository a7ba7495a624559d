"""The command line in forks of one process that has imported all it needs: a run without its start.

A fork is a process like a new one, with a folder, streams and signals of its own. Where the start
itself is the point, `cli_process.command` makes a new one.
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
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli_process import environment

_PRELOAD = (
    *(
        "rlkit.__main__",
        "rlkit.cli.train",
        "rlkit.assembly.assemble",
        "rlkit.launch.job",
        "torch._dynamo",
    ),
    *("rlkit.assembly.assemble", "rlkit.assembly.tabular_run"),
    *("rlkit.tracking.plot", "pyarrow.parquet"),
)


class Run:
    """A fork that runs the command line, as `subprocess.Popen` would have it."""

    def __init__(self, forks: Forks, pid: int, outputs: Sequence[Path]) -> None:
        self.pid, self._forks, self._outputs = pid, forks, outputs

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._forks.code_of(self.pid, timeout=0.0)

    def send_signal(self, number: int) -> None:
        """Like `Popen`'s; nothing happens when the run is over."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, which nobody said yet
                os.kill(self.pid, number)

    def wait(self, timeout: float = 300.0) -> int:
        code = self._forks.code_of(self.pid, timeout=timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired("rlkit", timeout)
        return code

    def finish(self, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Wait; what it printed."""
        code = self.wait(timeout)
        out, err = (path.read_text() for path in self._outputs)
        return subprocess.CompletedProcess("rlkit", code, out, err)


class Forks:
    """Starts runs; closing it ends them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for what the runs print."""
        self._folder, self._codes = folder, dict[int, int]()
        self._number = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid())],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Run:
        """`rlkit *arguments` in `cwd`."""
        self._number += 1
        outputs = [self._folder / f"{self._number}.{end}" for end in ("out", "err")]
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "env": dict(env or environment()),
            "outputs": [str(path) for path in outputs],
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        while (reply := self._reply(60.0)) is None or "started" not in reply:
            assert self._server.poll() is None
        self._codes.pop(reply["started"], None)  # of an earlier run, whose number it has again
        return Run(self, reply["started"], outputs)

    def code_of(self, pid: int, *, timeout: float) -> int | None:
        give_up = time.monotonic() + timeout
        while pid not in self._codes:
            if self._reply(max(0.0, give_up - time.monotonic())) is None:
                return None
        return self._codes[pid]

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def _reply(self, timeout: float) -> dict[str, int] | None:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            return None
        reply: dict[str, int] = json.loads(self._server.stdout.readline())
        if "ended" in reply:
            self._codes[reply["ended"]] = reply["code"]
        return reply


def _serve(parent: int) -> None:
    from rlkit.launch.birth import die_with

    die_with(parent)
    for module in _PRELOAD:
        importlib.import_module(module)
    gc.freeze()  # the forks share these pages
    server = os.getpid()
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                die_with(server)
                _become(json.loads(line))
            print(json.dumps({"started": pid}), flush=True)
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"ended": pid, "code": code}), flush=True)


def _become(order: dict[str, Any]) -> None:
    """In the fork: run the command line, and never come back."""
    from rlkit import __main__ as entry

    code: object = 1
    try:
        # A shell's background job, or one under nohup, ignores these, and so would its forks.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        files = [os.open(os.devnull, os.O_RDONLY), *(os.open(p, flags) for p in order["outputs"])]
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        tempfile.tempdir = None  # TMPDIR may be another
        sys.argv, sys.path[0] = [entry.__file__, *order["arguments"]], order["cwd"]
        entry.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
