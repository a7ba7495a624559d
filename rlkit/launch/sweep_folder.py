"""The folder of a sweep says which jobs it has, and where each of them lives.

    sweep.json            version, name, command, earlier commands, created, jobs: id, overrides,
                          folder
    jobs/<id>/            a run folder; an empty DONE in it when the run is complete
    jobs/<id>/output.txt  what the job's processes printed

A job's id is the hash of its configuration. So the same job has the same folder whichever sweep
command names it, and another configuration never has it. Running a command twice finds its jobs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.assembly.identity import known_leaves
from rlkit.config import Config, ConfigError
from rlkit.tracking import Redactor
from rlkit.tracking.files import write_atomic

# Where a run lives, how it is watched and when it gives up. Steps and memory do count: another
# number of steps is another result to report.
_NOT_HASHED = ("run_dir", "resume", "accept_changed_files", "tracker", "stop")


class Job(NamedTuple):
    """This record is one run of a sweep."""

    id: str
    overrides: tuple[str, ...]
    """The whole command line of this job: `kl=none`, `seed=0`, ..."""
    config: Config

    @classmethod
    def of(cls, config: Config, overrides: Sequence[str]) -> Job:
        """Return the job that runs `config`."""
        return cls(job_id(config), tuple(overrides), config)


def job_id(config: Config) -> str:
    """Return twelve hex digits that differ when runs differ in more than place and appearance."""
    leaves = {k: v for k, v in known_leaves(config).items() if k.split(".")[0] not in _NOT_HASHED}
    return _digest(json.dumps(leaves, sort_keys=True, default=str))


def sweep_name(label: str, jobs: Sequence[Job]) -> str:
    """Return one safe path component: `label` and a hash of the set of jobs in any order."""
    safe = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", label)[:80].strip("._-") or "sweep"
    return f"{safe}-{_digest(' '.join(sorted({job.id for job in jobs})))[:8]}"


def job_folder(sweep: Path, id: str) -> Path:
    """Return the folder of the job with this id."""
    return sweep / "jobs" / id


def write_sweep(sweep: Path, *, name: str, command: Sequence[str], jobs: Sequence[Job]) -> None:
    """Write `sweep.json`; an earlier command in the same folder and its jobs stay listed.

    Raises ConfigError when an earlier `sweep.json` is damaged, TrackingError when it cannot be
    written.

    Args:
        sweep: The folder of the sweep.
        name: The name of the sweep, for people.
        command: The words of the command line.
        jobs: The jobs of this command.
    """
    before = read_sweep(sweep)
    known = {job.id for job in jobs}
    kept = [entry for entry in before.get("jobs", []) if entry["id"] not in known]
    words = [word for job in jobs for word in job.overrides]
    redactor = Redactor.collect(environ=os.environ, argv=[*command, *words])
    shown = [redactor.text(argument) for argument in command]
    entries = [
        {
            "id": job.id,
            "overrides": [redactor.text(word) for word in job.overrides],
            "folder": f"jobs/{job.id}",
        }
        for job in jobs
    ]
    commands = [*before.get("earlier_commands", []), *filter(None, [before.get("command")])]
    record = {
        "version": 1,
        "name": name,
        "command": shown,
        "earlier_commands": [earlier for earlier in commands if earlier != shown],
        "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "jobs": kept + entries,
    }
    (sweep / "jobs").mkdir(parents=True, exist_ok=True)
    write_atomic(sweep / "sweep.json", (json.dumps(record, indent=2) + "\n").encode())


def read_sweep(sweep: Path) -> dict[str, Any]:
    """Return the content of `sweep.json`, empty without one; raises ConfigError on damage."""
    file = sweep / "sweep.json"
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("jobs"), list):
        raise ConfigError(f"{file} must be the record of a sweep")
    return record


@contextmanager
def hold(sweep: Path) -> Iterator[None]:
    """Keep other launchers out of `sweep`, a folder to be made if it is not there.

    Raises ConfigError when one is at work there, or the folder cannot be made or written.

    The lock goes with the process, however it ends.
    """
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        lock = (sweep / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot make the sweep's folder {sweep}: {error.strerror}") from error
    except ValueError as error:  # text that no file system takes, such as a NUL
        rule = "must be the name of a folder"
        raise ConfigError(f"hydra.sweep.dir {rule}, got {str(sweep)!r}: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"the sweep in {sweep} is being run by another process") from error
        yield


class Place(NamedTuple):
    """This record is the place of a run in a sweep."""

    group: str
    """The sweep's name; empty when the run is no job of a sweep."""
    title: str
    """The overrides that not all of its jobs share: `kl=none seed=0`."""


def place_in_sweep(run_dir: Path) -> Place:
    """Return the sweep that `run_dir` is a job of, and what tells this job from its others."""
    folder = run_dir.resolve()
    try:
        record = read_sweep(folder.parent.parent) if folder.parent.name == "jobs" else {}
    except ConfigError:
        record = {}
    overrides = {str(entry["id"]): entry["overrides"] for entry in record.get("jobs", [])}
    if folder.name not in overrides:
        return Place("", "")
    common = set.intersection(*map(set, overrides.values()))
    own = [o for o in overrides[folder.name] if len(overrides) == 1 or o not in common]
    return Place(str(record.get("name") or folder.parent.parent.name), " ".join(own) or folder.name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
