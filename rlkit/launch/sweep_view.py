"""A sweep shows itself on a terminal as a redrawn table, or as a line for every job that ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlkit.launch.birth import OUTPUT
from rlkit.launch.rows import FAILED, OVER, JobRow, JobStatus, seconds_left
from rlkit.tracking.columns import fixed, seconds

_REDRAW_S = 0.5
_HEARTBEAT_S = 60.0
_FULL_TABLE = 40
_STYLES = {
    JobStatus.waiting: "dim",
    JobStatus.running: "cyan",
    JobStatus.done: "green",
    JobStatus.earlier: "dim green",
    JobStatus.failed: "bold red",
    JobStatus.failed_earlier: "red",
    JobStatus.interrupted: "yellow",
}


class SweepView:
    """This view shows the rows of a sweep while it runs, and what became of them at its end."""

    def __init__(self, console: Console, rows: Sequence[JobRow], *, live: bool) -> None:
        self.rows = rows
        self.slots = 0
        """Jobs at once; 0 = another engine decides."""
        self._console = console
        self._began = self._drawn = self._spoke = time.monotonic()
        self._estimated = False
        self._live: Live | None = None
        if live:
            self._live = Live(
                console=console, auto_refresh=False, transient=True, get_renderable=self.render
            )

    def start(self) -> None:
        """Say what is going to happen."""
        counts = Counter(row.status for row in self.rows)
        parts = [f"{len(self.rows)} jobs"]
        parts += [
            f"{counts[s]} {s.value}"
            for s in (JobStatus.earlier, JobStatus.failed_earlier, JobStatus.running)
            if counts[s]
        ]
        if waiting := counts[JobStatus.waiting]:
            resumed = sum(
                row.status is JobStatus.waiting and row.first_step > 0 for row in self.rows
            )
            parts.append(f"{waiting} to run" + (f" ({resumed} resumed)" if resumed else ""))
            parts += [f"{min(self.slots, waiting)} at once"] if self.slots else []
        self._say(", ".join(parts))
        if self._live:
            self._live.start()

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        self._say(text)

    def started(self, row: JobRow) -> None:
        """Note that a job has been given a process."""
        if row.gpu:
            self._say(f"started [GPU {row.gpu}] {row.label}", plain_only=True)

    def ended(self, row: JobRow) -> None:
        """Note that a job's process has ended; failures name the cause and the file to read."""
        over = sum(row.status in OVER for row in self.rows)
        left = seconds_left(self.rows, slots=self.slots)
        if not self._estimated and left is not None and over < len(self.rows):
            self._estimated = True
            self._say(
                f"a job takes about {seconds(row.seconds)}: about {seconds(left)} for the rest"
            )
        text = (
            f"[{over}/{len(self.rows)}] {row.status.value} in {seconds(row.seconds)}: {row.label}"
        )
        if row.status is JobStatus.done:
            self._say(f"{text}, reward {fixed(row.reward)}", plain_only=True)
        else:
            self._say(f"{text}: {row.message}", plain_only=row.status is JobStatus.interrupted)
        if row.status is JobStatus.failed:
            self._say(f"    see {where(row.folder)}")

    def refresh(self) -> None:
        """Redraw if it is time to; on a pipe, a line a minute when nothing else is said."""
        now = time.monotonic()
        if self._live and now > self._drawn + _REDRAW_S:
            self._drawn = now
            self._read_progress()
            self._live.refresh()
        if not self._live and now > self._spoke + _HEARTBEAT_S:
            self._read_progress()
            for row in self.rows:
                if row.status is JobStatus.running:
                    step = f"step {row.step}/{row.steps}, reward {fixed(row.reward)}"
                    self._say(f"running {seconds(row.elapsed())}: {row.label}, {step}")

    def close(self) -> None:
        """Print the result of every job in place of the last frame."""
        if self._live:
            self._live.stop()
            self._live = None
        self._console.print(self._table(self.rows, final=True))
        self._console.print(self._summary())

    def render(self) -> RenderableType:
        """Return the table of the jobs that fit, and the totals.

        Jobs that are not over are the first to stay.
        """
        room = max(4, self._console.size.height - 6)
        return Group(self._table(self._visible(room), final=False), self._summary())

    def _visible(self, room: int) -> list[JobRow]:
        """Return all rows if there is room.

        Otherwise failures and running jobs come first, then the next and last ones.
        """
        if len(self.rows) <= room:
            return list(self.rows)
        order = (
            JobStatus.running,
            JobStatus.failed,
            JobStatus.waiting,
            JobStatus.interrupted,
            JobStatus.done,
        )
        ranked = sorted(
            self.rows, key=lambda r: order.index(r.status) if r.status in order else len(order)
        )
        kept = {id(row) for row in ranked[:room]}
        return [row for row in self.rows if id(row) in kept]

    def _table(self, rows: Sequence[JobRow], *, final: bool) -> RenderableType:
        if final and len(rows) > _FULL_TABLE:
            rows = [row for row in rows if row.status not in (JobStatus.done, JobStatus.earlier)]
            if not rows:
                return Group()
        gpus = any(row.gpu for row in rows)
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("job", overflow="fold")
        table.add_column("state", no_wrap=True)
        for title in ("step", "reward", "time", *(["GPU"] if gpus else [])):
            table.add_column(title, justify="right", no_wrap=True)
        if final and any(row.status in FAILED for row in rows):
            table.add_column("cause", overflow="fold")
        for row in rows:
            elapsed = row.elapsed()
            cells = [f"{row.step}/{row.steps}" if row.step else "", ""]
            cells[1] = "" if row.reward is None else fixed(row.reward)
            cells.append(seconds(elapsed) if elapsed else "")
            cells += [row.gpu] if gpus else []
            cells += (
                [f"{row.message}; {where(row.folder)}"] if row.status in FAILED and final else []
            )
            status = Text(row.status.value, style=_STYLES[row.status])
            table.add_row(Text(row.label), status, *map(Text, cells))
        return table

    def _summary(self) -> Text:
        counts = Counter(row.status for row in self.rows)
        text = Text("  ").join(
            Text(f"{counts[status]} {status.value}", style=_STYLES[status])
            for status in JobStatus
            if counts[status]
        )
        text.append(f"  {seconds(time.monotonic() - self._began)}")
        left = seconds_left(self.rows, slots=self.slots)
        if left:
            text.append(f", about {seconds(left)} left")
        return text

    def _read_progress(self) -> None:
        for row in self.rows:
            if row.status is JobStatus.running:
                row.read_progress()

    def _say(self, text: str, *, plain_only: bool = False) -> None:
        if self._live and plain_only:
            return
        self._spoke = time.monotonic()
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def where(folder: Path) -> Path:
    """Return the file that tells most about a failed job."""
    log = folder / "log.txt"
    return log if log.exists() else folder / OUTPUT
