"""This module makes the tracker of a run from the `tracker` group's options."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import Tracker
from rlkit.tracking.config import (
    ConsoleMode,
    MirrorConfig,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
    WandbMode,
)
from rlkit.tracking.console import LiveConsole, PlainConsole
from rlkit.tracking.fanout import Fanout
from rlkit.tracking.local import LocalTracker
from rlkit.tracking.mirror import Mirror, Service
from rlkit.tracking.printable import PrintableTracker

_PIPE_WIDTH = 120


def build_tracker(config: TrackerConfig, *, run_dir: Path, redactor: Redactor) -> Tracker:
    """Return local files in `run_dir`, then the console on standard output, then any mirror.

    Raises:
        TrackingError: the folder or its log cannot be written.
    """
    local = LocalTracker(
        run_dir,
        redactor,
        completions=config.completions,
        plot=config.plot,
        metrics_every=config.metrics_every,
    )
    others: list[Tracker] = [build_console(config, sys.stdout)]
    if isinstance(config, MirrorConfig):
        others.append(_mirror(config, run_dir, redactor))
    return Fanout(local, others, redactor)


def build_console(config: TrackerConfig, stream: TextIO) -> Tracker:
    """Return the console that `config` asks for and `stream` can show."""
    if hasattr(stream, "reconfigure"):  # a C locale must not turn a sparkline into a crash
        stream.reconfigure(errors="replace")
    console: Console = Terminal(file=stream)
    if not console.is_terminal and config.console is not ConsoleMode.live:
        console = Terminal(file=stream, width=_PIPE_WIDTH)
    if config.console is ConsoleMode.quiet:
        return PrintableTracker(PlainConsole(console, quiet=True))
    live = config.console is ConsoleMode.live
    if live or (config.console is ConsoleMode.auto and console.is_terminal):
        return PrintableTracker(LiveConsole(console, table_steps=config.table_steps))
    return PrintableTracker(PlainConsole(console, quiet=False))


class Terminal(Console):
    """The reader of this console may go away (`rlkit | head`) without ending the run."""

    def on_broken_pipe(self) -> None:
        """Fall silent; rich's own answer is SystemExit."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _mirror(config: MirrorConfig, run_dir: Path, redactor: Redactor) -> Mirror:
    options: dict[str, object] = {"project": config.project}
    if isinstance(config, WandbConfig):
        service = Service.wandb
        options |= {"entity": config.entity, "mode": _mode(config.mode)}
    elif isinstance(config, TrackioConfig):
        service = Service.trackio
        options |= {"space_id": config.space_id}
    elif isinstance(config, TensorboardConfig):
        service = Service.tensorboard
    else:
        raise TypeError(f"no mirror for {type(config).__name__}")
    return Mirror(
        service,
        options,
        run_dir=run_dir,
        timeout_s=config.timeout_seconds,
        num_samples=config.completions_per_step,
        hide=redactor.text,
    )


def _mode(mode: WandbMode) -> str | None:
    """Return the mode for wandb; None leaves the choice to its own WANDB_MODE."""
    return None if mode is WandbMode.auto else mode.value
