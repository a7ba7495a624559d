"""The place of a run's folder is tried before anything expensive starts; nothing is left there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rlkit.config import ConfigError, require
from rlkit.runtime.files import first_link

_OURS = ("checkpoints", "completions", "rollouts", "adapter", "model", "plots")
"""Folders in a run's folder that rlkit alone writes; wandb makes links in its own."""
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_INSIDE = 120
"""Bytes that the longest path inside a run's folder takes, with room to spare."""


def check_place(run_dir: Path) -> None:
    """Raise ConfigError unless a run can write to `run_dir`, which need not exist."""
    try:
        whole = os.fsencode(run_dir.absolute())
        longest = max(len(os.fsencode(part)) for part in run_dir.parts or ("",))
    except ValueError as error:  # text that no file system takes
        raise ConfigError(f"run_dir must be the name of a folder, got {run_dir!r}") from error
    require(b"\0" not in whole, "run_dir", "a name without NUL characters", repr(str(run_dir)))
    require(
        longest <= _LONGEST_NAME, "run_dir", "made of names of <= 255 bytes", f"{longest} bytes"
    )
    limit = _LONGEST_PATH - _INSIDE
    require(len(whole) <= limit, "run_dir", f"a path of <= {limit} bytes", f"{len(whole)} bytes")
    link = first_link(run_dir, subfolders=_OURS)
    require(link is None, "run_dir", "a folder without symbolic links in it", link)
    place = _nearest(run_dir.absolute())
    try:
        _try_to_write(place)
    except OSError as error:
        raise ConfigError(
            f"run_dir must be where a run can write, got {run_dir} ({place}: {error.strerror})"
        ) from error


def _nearest(path: Path) -> Path:
    """Return the innermost folder or file of `path` that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _try_to_write(folder: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(4096))
