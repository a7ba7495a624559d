"""Files and folders appear whole or not at all: written aside, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
from collections.abc import Container, Iterator
from pathlib import Path

_SCRATCH = re.compile(r"\..+\.(?:@(.*)@)?(\d+)\.partial")
"""A hidden name with the machine and the process; older versions left the machine out."""
_ABANDONED_S = 3600.0
"""Nobody finishes a file that a process of another machine has not touched for this long."""


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """Write to the path that is yielded; on leaving, what lies there becomes `path`.

    Readers see the old file or folder, or the new one. A power cut cannot reorder the content
    after the name. When the block raises, `path` stays as it was and nothing is left behind.

    Args:
        path: The final name of a file or folder; its parent folder must exist.

    Raises:
        OSError: The disk is full, or a folder is missing or may not be written. Or one of the old
            and the new is a file and the other a folder.
    """
    scratch = scratch_of(path)
    _remove(scratch)
    try:
        yield scratch
        for part in [*scratch.rglob("*"), scratch]:
            sync(part)
        # A rename replaces a file, but no folder with content. A file never takes a folder's place.
        if path.is_dir() and scratch.is_dir():
            _remove(path)
        scratch.replace(path)
        sync(path.parent)
    finally:
        _remove(scratch)


def scratch_of(path: Path) -> Path:
    """Return the name that this process gives to what is to become `path`, or was.

    It is in the same folder: a rename across file systems would be a copy. Machine and process keep
    two writers of one file apart.
    """
    return path.with_name(f".{path.name}.@{platform.node()[:40]}@{os.getpid()}.partial")


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of `path`; only for who alone may write it."""
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if found.name.startswith(f".{path.name}.") and found.name.endswith("partial"):
            _remove(found)


def remove_litter(folder: Path, *, subfolders: Container[str]) -> list[Path]:
    """Delete what killed processes left half-written in `folder` and its `subfolders`.

    Only for who holds the folder: in `subfolders` nobody else writes. What a process that lives
    writes into `folder` itself, such as a report, stays.

    Args:
        folder: The folder; it must exist.
        subfolders: The names of the folders in it to look into.

    Returns:
        What was deleted.
    """
    found = [path for path in folder.iterdir() if _is_left(path)]
    for inner in folder.iterdir():
        if inner.name in subfolders and inner.is_dir() and not inner.is_symlink():
            found += [path for path in inner.iterdir() if _SCRATCH.fullmatch(path.name)]
    for path in found:
        _remove(path)
    return found


def first_link(folder: Path, *, subfolders: Container[str]) -> Path | None:
    """Return a symbolic link in `folder` or anywhere below its `subfolders`; None when it has none.

    What is written or read through one may lie anywhere.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink():
            return path
        if path.name in subfolders and path.is_dir():
            for place, folders, files in os.walk(path):
                for name in (*folders, *files):
                    if (Path(place) / name).is_symlink():
                        return Path(place) / name
    return None


def _is_left(path: Path) -> bool:
    match = _SCRATCH.fullmatch(path.name)
    if match is None:
        return False
    host, pid = match.group(1), int(match.group(2))
    if host is not None and host != platform.node()[:40]:
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > _ABANDONED_S
        return False
    return pid == os.getpid() or not Path(f"/proc/{pid}").exists()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
