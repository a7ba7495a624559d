"""The sandbox runs Python that a model wrote, apart from the rest of the machine.

Namespaces of Linux give the code no network, no environment variables and no process but its own.
It can read Python's and the system's files and change none of them; it sees no others. Its folder
is empty and in memory. Time, memory, files and processes are limited. When the first process of a
namespace ends, the kernel kills its children, whatever they did to get away.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, NamedTuple

_PROGRAM = Path(__file__).with_name("sandboxed.py")
_GRACE_S = 1.0
"""Seconds that the processes may take beyond the limit, to start and to end."""
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"),
)


class Isolation(StrEnum):
    """This names what keeps the code from the rest of the machine."""

    namespaces = "namespaces"
    """No network, no files, and no process survives. Needs user namespaces, which containers may
    forbid, and Linux 5.12."""
    limits = "limits"
    """Limits and a killed process group alone: network and files stay, and a process may escape."""


class Confinement(NamedTuple):
    """These are the walls around the code."""

    isolation: Isolation = Isolation.namespaces
    seconds: float | None = 5.0
    """Seconds of processor and of wall-clock time, each, > 0; None = the caller's own limits."""
    memory_mb: int = 512
    """Address space of each process in MB, >= 64."""
    packages: bool = True
    """Whether the packages beside rlkit can be imported; the standard library always can."""


class Ran(NamedTuple):
    """This is what came of the code."""

    passed: frozenset[int]
    """The tests that did not raise, by number."""
    printed: str
    errors: str
    """It is all of standard error, with the traceback of what the code raised."""
    code: int
    """The exit code: 0 = it ran to its end, 1 = it raised, 128 + a signal = it was killed."""


def run_python(
    source: str,
    walls: Confinement,
    *,
    tests: Sequence[str] = (),
    secret: str = "",
    stdin: str = "",
) -> Ran:
    """Run a program in a process of its own, and after it each of `tests`.

    Args:
        source: Python.
        walls: What keeps it from the rest of the machine.
        tests: Python that runs after the program, in its process.
        secret: A word that the program cannot know; by it the tests that passed are told.
        stdin: What the program reads.

    Returns:
        What it printed, and what passed.

    Raises:
        OSError: The machine forbids the isolation that is asked for.
    """
    job = {
        **walls._asdict(),
        "visible": _visible(packages=walls.packages),
        **{"source": source, "tests": list(tests), "secret": secret, "stdin": stdin},
    }
    with contextlib.ExitStack() as stack:
        folder, home = "/", "/tmp"
        if walls.isolation is Isolation.limits:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rlkit-code-"))
            home = folder
        # Files without names: nothing is left of them when this process is killed.
        printed, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        told, code = _told(job, walls, (folder, home), printed, errors)
        if told.startswith("forbidden "):
            raise OSError(told.strip())
        lines = told.split("\n")
        passed = frozenset(i for i in range(len(tests)) if f"{secret} {i}" in lines)
        return Ran(passed, _text(printed), _text(errors), code)


def require(isolation: Isolation) -> None:
    """Raise ValueError, with one line, when this machine forbids `isolation`."""
    try:
        run_python("", Confinement(isolation))
    except OSError as error:
        raise ValueError(f"running Python must be possible, got: {error}") from error


def _told(
    job: dict[str, object],
    walls: Confinement,
    folders: tuple[str, str],
    printed: IO[bytes],
    errors: IO[bytes],
) -> tuple[str, int]:
    """Run the job; return what the program told of it, and its exit code."""
    folder, home = folders
    told, tell = os.pipe()
    # -I: neither variables nor the folder of the run decide what is imported; -S: no packages.
    flags = ["-I"] if walls.packages else ["-I", "-S"]
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, *flags, str(_PROGRAM), str(tell), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=errors,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": home},
                pass_fds=(tell,),
                start_new_session=True,
            )
        finally:
            os.close(tell)
        wait = None if walls.seconds is None else walls.seconds + _GRACE_S
        try:
            process.communicate(json.dumps(job).encode(), timeout=wait)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        with os.fdopen(told, "rb", closefd=False) as stream:
            return stream.read().decode(errors="replace"), code if code >= 0 else 128 - code
    finally:
        os.close(told)


def _visible(*, packages: bool) -> list[str]:
    """Return what of the machine's files the code can read: its own Python and the system's."""
    python = [f"{sys.base_prefix}/bin", f"{sys.base_prefix}/lib", f"{sys.base_prefix}/pyvenv.cfg"]
    if sys.prefix != sys.base_prefix:
        python += [f"{sys.prefix}/bin", f"{sys.prefix}/pyvenv.cfg"]
        python += [f"{sys.prefix}/lib"] if packages else []
    return [*_SYSTEM, *python]


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
