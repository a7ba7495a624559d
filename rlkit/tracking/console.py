"""The run shows itself as a live table and bars, or one plain line a step, and then the results."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlkit.tracking.base import EvalRecord, Level, Outcome, Phase, RunInfo, StepRecord
from rlkit.tracking.columns import (
    TableColumn,
    columns,
    details,
    fit,
    header_line,
    record_line,
    seconds,
)
from rlkit.tracking.read import read_evals
from rlkit.tracking.runlog import MESSAGES
from rlkit.tracking.summary import eval_line, print_summary, printable, sparkline

_STYLES = {Level.info: "", Level.warning: "yellow", Level.error: "bold red"}
_PLAIN_HEADER_EVERY = 20
_PLAIN_WIDTH = 200
_FIXED_LINES = 14
"""Lines of the live view besides the rows of its table."""


class PlainConsole:
    """This view prints one line a step, for pipes and CI.

    With `quiet`, it prints only warnings and the results.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console = console
        self._quiet = quiet
        self._columns: list[TableColumn] = []
        self._info: RunInfo | None = None
        self._evals: list[EvalRecord] = []
        self._watched: list[float] = []
        self._lines = 0
        self._signal = "reward"
        self._handler = _WarningsHandler(self)

    def start(self, info: RunInfo) -> None:
        self._info, self._signal = info, info.signal
        self._evals = read_evals(info.run_dir) if info.first_step else []
        self._columns = fit(columns(info.reward_names, signal=info.signal), _PLAIN_WIDTH)
        logging.getLogger().addHandler(self._handler)
        if not self._quiet:
            for line in header(info):
                self._print(line)
        for warning in info.warnings:
            self.message(Level.warning, warning)

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Do nothing, for a pipe has no place for bars."""

    def step(self, record: StepRecord) -> None:
        self._watched.append(record.metrics.get(self._signal, float("nan")))
        if self._quiet:
            return
        if self._lines % _PLAIN_HEADER_EVERY == 0:
            self._print(Text(header_line(self._columns), style="bold"))
        self._lines += 1
        self._print(Text(record_line(self._columns, record)))

    def evaluation(self, record: EvalRecord) -> None:
        self._evals = [e for e in self._evals if (e.label, e.step) != (record.label, record.step)]
        self._evals.append(record)
        if not self._quiet:
            self._print(Text(eval_line(record)))

    def message(self, level: Level, text: str) -> None:
        if self._quiet and level is Level.info:
            return
        prefix = "" if level is Level.info else f"{level.value}: "
        self._print(Text(prefix + printable(text), style=_STYLES[level]))

    def finish(self, outcome: Outcome) -> None:
        if self._info is not None:
            print_summary(self.console, self._info, outcome, self._evals, self._watched)

    def close(self, deadline_s: float) -> None:
        logging.getLogger().removeHandler(self._handler)

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True, highlight=False)


class LiveConsole(PlainConsole):
    """This view is redrawn in place: header, table of the last steps, reward curve and bars.

    A thread of rich redraws twice a second, so that clocks tick in a phase that hangs as well.
    """

    def __init__(self, console: Console, *, table_steps: int) -> None:
        super().__init__(console, quiet=False)
        self._recent: deque[StepRecord] = deque(maxlen=table_steps)
        self._durations: deque[float] = deque(maxlen=8)
        self._started = self._step_started = self._phase_started = time.monotonic()
        self._phase: tuple[Phase, int, int] | None = None
        self._done = 0
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=2,
            vertical_overflow="crop",
        )

    def start(self, info: RunInfo) -> None:
        self._done = info.first_step
        super().start(info)
        self._live.start()

    def progress(self, phase: Phase, done: int, total: int) -> None:
        if self._phase is None or self._phase[0] is not phase:
            self._phase_started = time.monotonic()
            if self._phase is None or self._phase[0] is Phase.evaluate:
                self._step_started = self._phase_started  # evaluations are not part of a step
        self._phase = (phase, done, total)

    def step(self, record: StepRecord) -> None:
        now = time.monotonic()
        self._durations.append(now - self._step_started)
        self._step_started = now
        self._watched.append(record.metrics.get(self._signal, float("nan")))
        self._recent.append(record)
        self._done = record.step + 1

    def finish(self, outcome: Outcome) -> None:
        self._phase = None
        self._live.stop()  # leaves the last frame, reward curve included
        self._watched.clear()
        super().finish(outcome)

    def close(self, deadline_s: float) -> None:
        self._live.stop()
        super().close(deadline_s)

    def render(self) -> RenderableType:
        """Return the whole view as it is now."""
        if self._info is None:
            return Group()
        width, height = self.console.size
        parts: list[RenderableType] = [Rule(style="dim")]
        recent = list(self._recent)[-max(2, height - _FIXED_LINES) :]
        if recent:
            candidates = columns(self._info.reward_names, signal=self._info.signal)
            shown = fit(candidates, width)
            parts.append(Text(header_line(shown), style="bold", no_wrap=True))
            for record in recent:
                style = "bold cyan" if record is recent[-1] else ""
                parts.append(Text(record_line(shown, record), style=style, no_wrap=True))
            dropped = [c for c in candidates if c not in shown]
            parts += [
                Text(""),
                sparkline(self._watched, width=min(60, width - 30), name=self._signal),
            ]
            parts += [Text(line, style="dim") for line in details(recent[-1], dropped)]
        parts += [Text(""), self._bars(self._info, width)]
        return Group(*parts)

    def _bars(self, info: RunInfo, width: int) -> Table:
        now = time.monotonic()
        total = info.num_steps
        bar = max(10, min(50, width - 46))
        grid = Table.grid(padding=(0, 1))
        left = self._time_left(total - self._done, now)
        grid.add_row(
            Text("steps", style="bold"),
            ProgressBar(total=total, completed=self._done, width=bar),
            Text(f"{self._done}/{total}"),
            Text(f"{seconds(now - self._started)}" + (f", about {left} left" if left else "")),
        )
        if self._phase is not None:
            phase, done, units = self._phase
            grid.add_row(
                Text(phase.value),
                ProgressBar(total=max(units, 1), completed=done, width=bar),
                Text(f"{done}/{units}"),
                Text(seconds(now - self._phase_started), style="dim"),
            )
        return grid

    def _time_left(self, remaining: int, now: float) -> str:
        """Return the time left, from the median of the last steps; empty when unknown or over."""
        if not self._durations or remaining <= 0:
            return ""
        typical = statistics.median(self._durations)
        spent = min(now - self._step_started, typical)
        return seconds(float(round(typical * remaining - spent)))


def header(info: RunInfo) -> list[Text]:
    """Return two lines on what runs where."""
    dtype = f"{info.dtype} ({info.dtype_reason})" if info.dtype_reason else info.dtype
    resumed = f", from step {info.first_step}" if info.first_step else ""
    first = Text.assemble(
        ("rlkit ", "bold"),
        (printable(info.algorithm), "bold cyan"),
        " on ",
        (printable(info.task), "bold cyan"),
        " · ",
        printable(info.model),
        f" · {printable(info.device)} {dtype}",
    )
    second = Text(
        f"{info.num_steps} steps{resumed} of {info.prompts_per_step} prompts × {info.group_size} "
        f"samples · {printable(str(info.run_dir))}",
        style="dim",
    )
    return [first, second]


class _WarningsHandler(logging.Handler):
    """This handler shows warnings of Python's logging that `Tracker.message` did not bring."""

    def __init__(self, owner: PlainConsole) -> None:
        super().__init__(logging.WARNING)
        self._owner = owner

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == MESSAGES.name:
            return
        level = Level.error if record.levelno >= logging.ERROR else Level.warning
        try:
            self._owner.message(level, record.getMessage())
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: `log.txt` has the record, and a broken terminal must not stop a run."""
