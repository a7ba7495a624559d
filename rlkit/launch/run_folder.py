"""The folder of one run is never shared, never overwritten and always says where the run stands."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from rlkit.assembly.identity import CURES, identity, is_identity
from rlkit.config import Config, ConfigError, Resume, leaves
from rlkit.launch.masked import masked_yaml, redactor_of
from rlkit.runtime.redact import Redactor
from rlkit.schema import NEWER_OPTIONS
from rlkit.tracking.base import Outcome, Status
from rlkit.tracking.files import write_atomic


@contextmanager
def claim(config: Config, run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; writes `config.yaml` and a running `status.json`.

    Raises ConfigError when another process holds it, or when it belongs to a run with another
    configuration. The lock goes with the process, however it ends.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"run_dir is in use by another process: {run_dir}") from error
        if config.resume is not Resume.never:
            check_same_run(config, run_dir)
        write_atomic(run_dir / "config.yaml", masked_yaml(config).encode())
        write_status(run_dir, Status.running, message="")
        yield


def check_same_run(config: Config, run_dir: Path) -> None:
    """Raise ConfigError naming the first option that differs from the run being resumed.

    An option that only leaves rows out may be given on resume: it is the cure of a run that stopped
    at such a row.
    """
    file = run_dir / "config.yaml"
    if not file.exists():
        return
    saved, now = (dict(leaves(yaml.safe_load(t))) for t in (file.read_text(), masked_yaml(config)))
    redactor = redactor_of(config)
    for key in dict.fromkeys([*identity(config), *filter(is_identity, saved)]):
        before, after = (values.get(key, NEWER_OPTIONS.get(key)) for values in (saved, now))
        before = redactor.leaf(key, before)  # older runs kept secrets as they were
        if before != after and after not in CURES.get(key, ()):
            raise ConfigError(
                f"{key} must be {before} as in the run being resumed ({run_dir}), got {after}"
            )


def write_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Record how the run ended."""
    write_status(run_dir, outcome.status, message=outcome.message)


def write_status(run_dir: Path, status: Status, *, message: str) -> None:
    """Write `status.json`: status, one line of why, process id and time."""
    message = Redactor.of_process().text(message)
    record = {"status": status.value, "message": message, "pid": os.getpid(), "time": time.time()}
    write_atomic(run_dir / "status.json", (json.dumps(record, indent=2) + "\n").encode())
