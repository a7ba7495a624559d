"""This module finds and filters the completions of a running job, a page at a time."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rlkit.report.job import JobRecord
from rlkit.report.text import fixed
from rlkit.tracking import SampleRow, read_samples

NEWEST = "newest"
PER_PAGE = 10
_FILE = re.compile(r"(?:(step)|eval-(.*))-(\d{6,})\.parquet")
_MOST_CHARACTERS = 20_000
_MOST_FILES = 2000


class Order(StrEnum):
    """This is the order of the rows of a file."""

    sampled = "sampled"
    highest = "highest"
    lowest = "lowest"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleQuery:
    """This record is what the reader of the page has chosen."""

    job: str = ""
    """A job's id; an unknown one stands for the first job with completions."""
    file: str = NEWEST
    """The name of a file as it was offered; an unknown one stands for the newest."""
    text: str = ""
    """Only rows whose prompt or completion has it, whatever its case."""
    order: Order = Order.sampled
    cut: bool = False
    """Only rows that were cut at the length limit."""
    page: int = 0
    """From 0; a page beyond the last is the last."""


class SampleShelf:
    """It answers queries; the file that was read last is kept, as readers turn pages."""

    def __init__(self, jobs: Callable[[], Sequence[JobRecord]]) -> None:
        """Look completions up in what `jobs` returns at the time of a query."""
        self._jobs = jobs
        self._lock = threading.Lock()
        self._last: tuple[tuple[str, int, int], list[SampleRow]] | None = None

    def answer(self, query: SampleQuery) -> dict[str, object]:
        """Return a page of rows with what else there is to choose, as the page's script reads it.

        A query names jobs and files by what was offered: no path is made of it.
        """
        files = {job.id: have for job in self._jobs() if (have := _files(job.folder))}
        names = {job.id: " ".join(job.overrides) or job.id for job in self._jobs()}
        job = query.job if query.job in files else next(iter(files), "")
        offered = files.get(job, {})
        file = query.file if query.file in offered else next(reversed(offered), "")
        read = self._read(offered[file]) if file else []
        found = _chosen(read, query)
        pages = max(1, math.ceil(len(found) / PER_PAGE))
        page = min(max(0, query.page), pages - 1)
        first = page * PER_PAGE
        return {
            "jobs": [{"id": id_, "name": names[id_]} for id_ in files],
            "job": job,
            "files": [{"id": name, "name": _label(name)} for name in reversed(offered)],
            "file": file,
            "total": len(read),
            "found": len(found),
            "page": page,
            "pages": pages,
            "first": first,
            "rows": [_shown(row) for row in found[first : first + PER_PAGE]],
        }

    def _read(self, path: Path) -> list[SampleRow]:
        with self._lock:
            try:
                stat = path.stat()
                key = (str(path), stat.st_size, stat.st_mtime_ns)
                if self._last is None or self._last[0] != key:
                    self._last = key, read_samples(path)
            except (OSError, ValueError, TypeError, KeyError):  # cut, or deleted meanwhile
                return []
            return self._last[1]


def _files(folder: Path) -> dict[str, Path]:
    """Return the newest files of completions by name, the newest last."""
    try:
        inside = [path for path in (folder / "completions").iterdir() if _FILE.fullmatch(path.name)]
    except OSError:
        return {}
    found = sorted(inside, key=lambda path: (_step(path.name), path.name))
    return {path.name: path for path in found[-_MOST_FILES:] if not path.is_symlink()}


def _step(name: str) -> int:
    match = _FILE.fullmatch(name)
    assert match is not None
    return int(match[3])


def _label(name: str) -> str:
    match = _FILE.fullmatch(name)
    assert match is not None
    return f"step {int(match[3])}" if match[1] else f"evaluation {match[2]}, step {int(match[3])}"


def _chosen(rows: Sequence[SampleRow], query: SampleQuery) -> list[SampleRow]:
    wanted = query.text.casefold()
    found = [
        row
        for row in rows
        if (not query.cut or row.finish_reason == "length")
        and (wanted in row.completion.casefold() or wanted in row.prompt.casefold())
    ]
    if query.order is Order.sampled:
        return found
    sign = 1.0 if query.order is Order.lowest else -1.0
    # A row without a reward comes last, whatever the order.
    return sorted(found, key=lambda r: math.inf if math.isnan(r.reward) else sign * r.reward)


def _shown(row: SampleRow) -> dict[str, object]:
    return {
        "prompt": _clipped(row.prompt),
        "index": row.prompt_index,
        "sample": row.sample_index,
        "completion": _clipped(row.completion),
        "passages": [
            {"text": _clipped(p.text.strip()), "sampled": p.sampled} for p in row.passages
        ],
        "reward": "no reward" if math.isnan(row.reward) else fixed(row.reward, digits=2),
        "advantage": fixed(row.advantage, digits=2, sign="+"),
        "tokens": row.num_tokens,
        "cut": row.finish_reason == "length",
        "columns": {name: _clipped(str(value)) for name, value in row.columns.items()},
    }


def _clipped(text: str) -> str:
    left_out = len(text) - _MOST_CHARACTERS
    return text if left_out <= 0 else f"{text[:_MOST_CHARACTERS]} … and {left_out} characters more"
