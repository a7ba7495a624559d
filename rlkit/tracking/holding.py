"""One process at a time holds the folder of a run, on whatever machine that sees the folder.

A lock on the file `.lock` says so, and it goes with its process. Some shared file systems keep a
lock on the machine that took it. So the file also names its holder, who touches it every few
seconds. Another machine believes the name as long as the file is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

LOCK = ".lock"


class InUse(Exception):
    """Another process holds the folder; the message says which one."""


class Pace(NamedTuple):
    """These are the times of holding a folder, in seconds."""

    beat: float = 10.0
    """A holder touches the lock file this often."""
    silent: float = 60.0
    """A holder on another machine is taken for dead after this time without a touch."""
    patience: float = 180.0
    """A file server frees the locks of a machine that died within this time; NFS takes 90 s."""
    glimpse: float = 1.0
    """A process that only looks whether the folder is held has its lock for less than this."""


PACE = Pace()


class Holder(NamedTuple):
    """A holder is a process, the machine it runs on, and the cluster's name of its job."""

    host: str
    boot: str
    """The kernel calls this start of the machine so; two machines may have one name."""
    pid: int
    job: str

    @property
    def is_here(self) -> bool:
        """Return whether it is a process of this machine, whose locks are to be trusted."""
        return (self.host, self.boot) == (platform.node(), _boot())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" ({self.job})" if self.job else "")


def this_process() -> Holder:
    """Return what the lock file says of this process while it holds a folder."""
    return Holder(platform.node(), _boot(), os.getpid(), cluster_job(os.environ))


def cluster_job(environ: Mapping[str, str]) -> str:
    """Return `Slurm job 12_3` or the like; empty where no cluster started this process."""
    if array := environ.get("SLURM_ARRAY_JOB_ID"):
        return f"Slurm job {array}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    job = environ.get("SLURM_JOB_ID")
    return f"Slurm job {job}" if job else ""


@contextmanager
def hold(folder: Path, pace: Pace = PACE) -> Iterator[list[str]]:
    """Hold `folder`, which exists, for this process; yields lines about who held it before.

    The holder of another machine may have died with it, so its next touch is waited for.

    Raises:
        InUse: Another process holds the folder.
        OSError: The lock file cannot be made, or the file system has no locks.
    """
    with (folder / LOCK).open("a+") as lock:
        note = _take(lock, folder, pace)
        over = threading.Event()
        _write(lock, json.dumps(this_process()._asdict()))
        beats = threading.Thread(target=_beat, args=(lock, over, pace.beat), daemon=True)
        beats.start()
        try:
            yield [note] if note else []
        finally:
            over.set()
            beats.join()
            with contextlib.suppress(OSError):  # a full disk; the lock goes all the same
                _write(lock, "")


def is_held(folder: Path) -> bool:
    """Return whether a live process holds the folder; a copy of a folder may lack the file."""
    path = folder / LOCK
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        holder = _read(path)
        if holder is None or holder.is_here:
            return False
        return _now(folder) - os.fstat(lock.fileno()).st_mtime < PACE.silent


def holder_of(folder: Path) -> Holder | None:
    """Return the process that the lock file names; None when it names none."""
    return _read(folder / LOCK)


def _take(lock: IO[str], folder: Path, pace: Pace) -> str:
    """Lock the file for this process; returns a line about a holder that died elsewhere."""
    began = time.monotonic()
    first_touch: float | None = None
    while True:
        locked, holder, touched = _lock(lock), _read(folder / LOCK), _touched(folder / LOCK)
        waited = time.monotonic() - began
        if holder is None or holder.is_here:
            if locked:
                return ""
            if waited > pace.glimpse:
                raise InUse(str(holder or "another process"))
        else:
            first_touch = touched if first_touch is None else first_touch
            if touched != first_touch or waited > pace.patience:
                raise InUse(str(holder))
            if locked and _now(folder) - touched > pace.silent:
                return f"{holder} held this folder and is taken for dead"
        time.sleep(min(0.2, pace.beat / 4))


def _lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beat(lock: IO[str], over: threading.Event, every: float) -> None:
    while not over.wait(every):
        with contextlib.suppress(OSError):  # a file server that is away for a while
            os.utime(lock.fileno())


def _write(lock: IO[str], text: str) -> None:
    lock.truncate(0)
    lock.write(text)
    lock.flush()
    os.utime(lock.fileno())


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # nobody's, an older version's, or half-written
        return None


def _touched(path: Path) -> float:
    with path.open() as file:  # opened anew: NFS then asks its server for the time
        return os.fstat(file.fileno()).st_mtime


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system, which may be another machine's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
