"""A watcher holds the page of a study and makes it anew when a run has written something."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.report.build import LivePage, ReportOptions, analyse_with, build_page, report_command
from rlkit.report.job import JobRecord, State, is_over, read_job
from rlkit.report.load import StudyError, StudyKind, job_folders, load_study
from rlkit.report.progress import progress_of
from rlkit.report.text import count_of
from rlkit.tracking.holding import is_held

_LOG = logging.getLogger(__name__)
_WATCHED = ("config.yaml", "run.json", "status.json", "metrics.jsonl", "evals.jsonl", "DONE")
_WATCHED_FOLDERS = (".", "completions")
_SHARE = 0.1
"""The most of one core that making pages may take: a page is made again after ten times as long."""

Marks = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPage:
    """This record is a page as it is sent."""

    body: bytes
    tag: str
    """It names the content: a browser that has it is told that nothing has changed."""
    problem: str = ""
    """Why the folder could not be read again, so that the body is an older one; else empty."""


class Watcher:
    """It reads folders again when they have changed, and never more often than they are asked for.

    Threads may share it: one at a time makes a page.
    """

    def __init__(self, paths: Sequence[Path], options: ReportOptions, *, every: float) -> None:
        """Read the study and make its first page.

        Raises:
            StudyError: there is nothing to watch, or an option names nothing there is.
        """
        self._paths, self._options, self.every = tuple(paths), options, every
        self._lock = threading.Lock()
        self._study = load_study(paths)
        self._marks, self._checked, self._cost = self._read_marks(), time.monotonic(), 0.0
        self._page = self._make()

    @property
    def jobs(self) -> Sequence[JobRecord]:
        """Return the jobs as the last page shows them."""
        return self._study.jobs

    @property
    def name(self) -> str:
        """Return the name of the study."""
        return self._study.name

    def page(self) -> ServedPage:
        """Return the page, made anew when the folders have changed since."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= max(self.every / 2, self._cost / _SHARE):
                self._checked = now
                self._renew()
            return self._page

    def ended(self) -> str:
        """Return one line when no job runs and no sweep may still start one, else an empty text.

        While jobs run it reads one small file of each, so that it may be asked all the time.
        """
        study = self._study
        if study.kind is StudyKind.sweep and study.folder is not None and is_held(study.folder):
            return ""
        if not all(is_over(job.folder) for job in study.jobs):
            return ""
        if study.kind is StudyKind.run:
            job = read_job(study.jobs[0].folder, job_id="")
            steps = count_of(len(job.steps.get("step", ())), "step")
            return f"the run has ended: {job.state.value}, {steps}"
        states = [read_job(job.folder, job_id="").state for job in study.jobs]
        said = ", ".join(f"{states.count(s)} {s.value}" for s in State if s in states)
        return f"no job runs any more: {said}"

    def _renew(self) -> None:
        try:
            marks = self._read_marks()
            if marks == self._marks and not self._page.problem:
                return
            self._study = load_study(self._paths)
            self._marks, self._page = marks, self._make()
        except Exception as error:  # a folder that is being moved must not end the watch
            _LOG.debug("the page was not renewed", exc_info=True)
            name = "" if isinstance(error, StudyError) else f"{type(error).__name__}: "
            problem = " ".join(f"{name}{error}".split())
            self._page = ServedPage(body=self._page.body, tag=f"{self._page.tag}!", problem=problem)

    def _make(self) -> ServedPage:
        began = time.monotonic()
        results = analyse_with(self._study, self._options)
        live = LivePage(
            every=self.every, progress=progress_of(self._study.jobs), ended=self.ended()
        )
        command = report_command(self._paths, self._options)
        body = build_page(results, command=command, live=live).encode()
        self._cost = time.monotonic() - began
        return ServedPage(body=body, tag=hashlib.sha256(body).hexdigest()[:32])

    def _read_marks(self) -> Marks:
        """Return what changes when a run writes: sizes and times of its files, and its state."""
        found: list[object] = [_mark(path / "sweep.json") for path in self._paths]
        for folder in job_folders(self._paths):
            found += [str(folder), is_over(folder)]
            found += [_mark(folder / name) for name in (*_WATCHED, *_WATCHED_FOLDERS)]
        return tuple(found)


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
