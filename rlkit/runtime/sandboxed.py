"""This program runs code that a model wrote; `rlkit.runtime.sandbox` starts it, nobody else does.

It imports nothing of rlkit. Its arguments are the descriptor that results go to and the process
that started it; its standard input is a job in JSON. It shuts itself in, then runs the code in a
child, which dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_NS, _NEW_IPC = (
    *(0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000),
)
_DIE_WITH_PARENT, _DROP_BOUND, _NO_NEW_PRIVILEGES = 1, 24, 38
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
_SET_MOUNT, _HERE, _BELOW_TOO = 442, -100, 0x8000
"""The system call mount_setattr (the same number on all machines), and its arguments."""
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
_CAPABILITIES_3 = 0x20080522
_ROOT = "/proc"
"""The new root is mounted here first: a folder that always exists and holds no file of Python."""
_FOLDER = "/tmp"
_MAX_FOLDER, _MAX_FILE = 64 << 20, 16 << 20
_MAX_PROCESSES, _MAX_FILES = 64, 64


def main() -> None:
    """Read the job, shut this process in, and run the code in a child."""
    tell, parent = int(sys.argv[1]), int(sys.argv[2])
    job = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        return
    apart = job["isolation"] == "namespaces"
    if apart:
        user, group = os.getuid(), os.getgid()
        try:
            _call(libc.unshare, _NEW_USER | _NEW_PID | _NEW_NET | _NEW_NS | _NEW_IPC)
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        except OSError as error:
            _forbidden(tell, error)
    child = os.fork()
    if child == 0:  # the first process of the namespace: its end is the end of all others
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if apart:
            try:
                _hide_files(libc, job["visible"])
            except OSError as error:
                _forbidden(tell, error)
            _drop_capabilities(libc)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _limit(job)
        os._exit(_execute(job, tell))
    os.close(tell)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _forbidden(tell: int, error: OSError) -> None:
    reason = error.strerror or str(error)
    os.write(tell, f"forbidden isolation=namespaces ({reason}): set isolation=limits".encode())
    os._exit(1)


def _call(function: Any, *arguments: object) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _hide_files(libc: ctypes.CDLL, visible: list[str]) -> None:
    """Make a new root of nothing but `visible`, read-only, and an empty folder in memory."""
    # Nothing that is mounted from here on may be seen outside.
    _call(libc.mount, None, b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)
    _mount_memory(libc, _ROOT)
    # Before what is shown: Python itself may lie in that folder.
    os.makedirs(_ROOT + _FOLDER)
    _mount_memory(libc, _ROOT + _FOLDER)
    for path in visible:
        _show(libc, path)
    for name in ("null", "zero", "random", "urandom"):
        _show(libc, f"/dev/{name}")
    os.symlink(_FOLDER, _ROOT + "/dev/shm")  # what multiprocessing asks for
    _protect(libc, _ROOT, _READ_ONLY, below=False)
    os.chdir(_ROOT)
    # The old root comes to lie over the new one, and goes.
    _call(libc.pivot_root, b".", b".")
    _call(libc.umount2, b".", _DETACH)
    os.chdir(_FOLDER)


def _mount_memory(libc: ctypes.CDLL, place: str) -> None:
    options = f"size={_MAX_FOLDER},nr_inodes=4096,mode=755".encode()
    flags = ctypes.c_ulong(_NO_SETUID | _NO_DEVICES)
    _call(libc.mount, b"tmpfs", place.encode(), b"tmpfs", flags, options)


def _show(libc: ctypes.CDLL, path: str) -> None:
    """Let the code read a file or a folder at its usual place."""
    source, target = Path(path), Path(_ROOT + path)
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and source.parent == Path("/"):  # /bin -> usr/bin
        target.symlink_to(os.readlink(source))
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    flags = ctypes.c_ulong(_BIND | _RECURSIVE)
    _call(libc.mount, os.fsencode(source), os.fsencode(target), None, flags, None)
    devices = 0 if path.startswith("/dev/") else _NO_DEVICES
    _protect(libc, str(target), _READ_ONLY | _NO_SETUID | devices, below=True)


def _protect(libc: ctypes.CDLL, place: str, attributes: int, *, below: bool) -> None:
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _BELOW_TOO if below else 0
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    _call(libc.syscall, _SET_MOUNT, _HERE, os.fsencode(place), flags, wanted, size)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up the rights over the namespaces, so that no mount can be changed any more."""
    for capability in range(64):
        if libc.prctl(_DROP_BOUND, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more of them
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _call(libc.capset, header, none)


def _limit(job: dict[str, Any]) -> None:
    """Bound CPU seconds, memory, files and processes of the code and of its children."""
    seconds = job["seconds"]
    limits = [
        (resource.RLIMIT_AS, job["memory_mb"] << 20),
        (resource.RLIMIT_FSIZE, _MAX_FILE),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ]
    if seconds is not None:
        limits.append((resource.RLIMIT_CPU, max(1, round(seconds))))
    for kind, most in limits:
        _, hard = resource.getrlimit(kind)  # whoever started us may have set less
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _execute(job: dict[str, Any], tell: int) -> int:
    """Run the code, then each test on its own; a test that passes is told."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(job["stdin"].encode(errors="replace")))
    source, tests, secret = job["source"], job["tests"], job["secret"]
    if not tests:
        os.close(tell)
    names: dict[str, Any] = {"__name__": "__main__"}
    code = 0
    try:
        exec(compile(source, "completion.py", "exec"), names)
    except SystemExit as error:  # tests may still pass on what is defined
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for i, test in enumerate(tests):
        try:
            exec(compile(test, f"test_{i}.py", "exec"), names)
        except BaseException:
            continue
        os.write(tell, f"{secret} {i}\n".encode())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return code & 255


if __name__ == "__main__":
    main()
