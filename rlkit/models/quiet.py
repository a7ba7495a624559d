"""Show one line for a slow step of loading, in place of the bars of libraries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def slow_step(text: str, *, say: Callable[[str], None]) -> Iterator[None]:
    """Tell of a step that takes seconds or minutes: a pipe gets one line before it.

    On a terminal the seconds tick while the body runs, and its line stays with what it took.
    """
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        say(f"{text} ...")
        with no_progress_bars():
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress, no_progress_bars():
        progress.add_task(text, total=None)
        yield
    say(f"{text}: {time.monotonic() - started:.0f} s")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the bars of transformers, of the hub and of tqdm itself inside."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    bar: Any = tqdm
    was_enabled, made = logging.is_progress_bar_enabled(), bar.__init__
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # The reader of GGUF files has a bar that transformers' switch does not reach: tqdm's own
    # default is the one place that does.
    bar.__init__ = partialmethod(made, disable=True)
    try:
        yield
    finally:
        bar.__init__ = made
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
