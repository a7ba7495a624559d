"""This module finds the jobs of a report: of a sweep folder, one run, or any number of folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlkit.report.job import JobRecord, State, is_run, read_job
from rlkit.tracking import Redactor

_DEPTH = 4
__all__ = ["JobRecord", "State", "Study", "StudyError", "StudyKind", "load_study"]


class StudyError(ValueError):
    """There is nothing to report on; the message is one line."""


class StudyKind(StrEnum):
    """This kind says how the jobs came to be together."""

    run = "run"
    sweep = "sweep"
    runs = "runs"
    """Folders named on the command line, or found below one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study holds the jobs of a report, in the order they were asked for."""

    kind: StudyKind
    name: str
    folder: Path | None
    """The folder of the run or of the sweep; None when the jobs come from several places."""
    command: str = ""
    """The command that last started the sweep; empty when unknown."""
    earlier_commands: tuple[str, ...] = ()
    """Those that were others."""
    created: str = ""
    jobs: tuple[JobRecord, ...]


def load_study(paths: Sequence[Path]) -> Study:
    """Read the jobs below `paths`: sweeps (`sweep.json`), runs, and folders of runs.

    Raises:
        StudyError: a path does not exist, holds no run, or its `sweep.json` is none.
    """
    if not paths:
        raise StudyError("name a run folder, a sweep folder, or several of them")
    for path in paths:
        if not path.is_dir():
            raise StudyError(f"there is no folder {path}")
    if len(paths) == 1:
        (path,) = paths
        if (path / "sweep.json").exists():
            return _sweep(path)
        if is_run(path):
            name = path.resolve().name
            return Study(
                kind=StudyKind.run, name=name, folder=path, jobs=(read_job(path, job_id=name),)
            )
    return _runs(paths)


def load_sides(paths: Sequence[Path]) -> Study:
    """Return each path as one side of a comparison: all its runs together are one variant.

    Raises:
        StudyError: as `load_study`.
    """
    names = _short_names(paths)
    jobs = [
        replace(job, id=f"{name}/{job.id}", overrides=(name, f"seed={job.seed}"))
        for path, name in zip(paths, names, strict=True)
        for job in load_study([path]).jobs
    ]
    return Study(kind=StudyKind.runs, name=" against ".join(names), folder=None, jobs=tuple(jobs))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise StudyError("the same folder is named twice")


def _inside(folder: Path, name: str) -> Path:
    """Return the folder `name` of a sweep; raises StudyError when it lies outside."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise StudyError(f"{folder / 'sweep.json'} must name folders inside {folder}, got {name!r}")
    return folder / name


def _sweep(folder: Path) -> Study:
    redactor = Redactor.of_process()

    def said(command: Iterable[object]) -> str:
        return redactor.text(" ".join(map(str, command)))

    with _recorded(folder) as record:
        jobs = tuple(
            read_job(
                _inside(folder, str(job["folder"])),
                job_id=str(job["id"]),
                overrides=[str(text) for text in job["overrides"]],
            )
            for job in record["jobs"]
        )
        return Study(
            kind=StudyKind.sweep,
            name=str(record.get("name") or folder.resolve().name),
            folder=folder,
            command=said(record.get("command", ())),
            earlier_commands=tuple(map(said, record.get("earlier_commands", ()))),
            created=str(record.get("created", "")),
            jobs=jobs,
        )


@contextmanager
def _recorded(folder: Path) -> Iterator[Any]:
    """Yield what `sweep.json` of a sweep's folder holds; what it lacks ends in StudyError."""
    path = folder / "sweep.json"
    try:
        record = json.loads(path.read_text())
        if record["version"] != 1:
            raise StudyError(f"{path} has version {record['version']}, this rlkit reads 1")
        yield record
    except StudyError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _runs(paths: Sequence[Path]) -> Study:
    jobs: list[JobRecord] = []
    for path in paths:
        if (path / "sweep.json").exists():
            jobs += _sweep(path).jobs
            continue
        folders = _run_folders(path, depth=_DEPTH)
        if not folders:
            raise StudyError(f"there is no run in {path}")
        name = path.resolve().name
        for found in folders:
            inside = found.relative_to(path)
            job_id = name if inside == Path(".") else f"{name}/{inside}"
            jobs.append(read_job(found, job_id=job_id))
    names = [path.resolve().name for path in paths]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    folder = paths[0] if len(paths) == 1 else None
    return Study(
        kind=StudyKind.runs, name=", ".join(names[:3]) + more, folder=folder, jobs=tuple(jobs)
    )


def job_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the folders of the jobs below `paths`, without reading what the jobs wrote.

    Raises:
        StudyError: as `load_study`.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise StudyError(f"there is no folder {path}")
        if not (path / "sweep.json").exists():
            found += _run_folders(path, depth=_DEPTH)
            continue
        with _recorded(path) as record:
            found += [_inside(path, str(job["folder"])) for job in record["jobs"]]
    return found


def _run_folders(folder: Path, *, depth: int) -> list[Path]:
    """Run folders at or below `folder`, in the order of their names."""
    if is_run(folder):
        return [folder]
    if depth == 0:
        return []
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [run for child in below for run in _run_folders(child, depth=depth - 1)]
