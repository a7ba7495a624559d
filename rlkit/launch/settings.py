"""These are the options of `hydra/launcher=isolated`, the launcher of `rlkit -m`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rlkit.schema import Options


class Start(StrEnum):
    """This choice says how the process of a job comes to life."""

    auto = "auto"
    """`warm` without a GPU, `fresh` on one."""
    warm = "warm"
    """Forked from a process that has imported torch and rlkit and done nothing else: in 10 ms."""
    fresh = "fresh"
    """A new interpreter: seconds, and nothing shared with anything."""


class BoardMode(StrEnum):
    """This choice says how a sweep shows itself on the terminal."""

    auto = "auto"
    """`live` on a terminal, `plain` elsewhere."""
    live = "live"
    """A table of the jobs that is redrawn in place."""
    plain = "plain"
    """A line when a job starts and when it ends."""


@dataclass(kw_only=True, slots=True)
class IsolatedConfig(Options):
    """The jobs run on this machine, each in a process of its own."""

    jobs: int = 0
    """Jobs at once, >= 0; 0 = as many as the GPUs take, or without one the CPU cores divided by
    memory.torch_threads (1 if that is 0) and by the ranks of a job."""
    gpus: list[str] = field(default_factory=list)
    """UUIDs or indices of the cards to use, as in CUDA_VISIBLE_DEVICES; empty = all visible."""
    jobs_per_gpu: int = 1
    """Jobs that share a card, >= 1; unless memory.budget says otherwise, each may take an equal
    part of its memory."""
    retry_failed: bool = False
    """Run failed jobs again; otherwise they are reported and left as they are."""
    fail_fast: int = 0
    """Failed jobs after which the sweep stops, >= 0; 0 = it goes on whatever fails."""
    stall_minutes: float = 60.0
    """Minutes without a sign of life (a step, a line of output) after which a job is killed and
    counts as failed, >= 0; 0 = never."""
    grace_seconds: float = 30.0
    """Seconds that a job gets to save and end when the sweep is stopped, > 0; then it is killed."""
    start: Start = Start.auto
    board: BoardMode = BoardMode.auto

    def __post_init__(self) -> None:
        for key, least in (("jobs", 0), ("jobs_per_gpu", 1), ("fail_fast", 0)):
            if getattr(self, key) < least:
                raise ValueError(
                    f"hydra.launcher.{key} must be >= {least}, got {getattr(self, key)}"
                )
        if not self.stall_minutes >= 0:
            raise ValueError(f"hydra.launcher.stall_minutes must be >= 0, got {self.stall_minutes}")
        if not self.grace_seconds > 0:
            raise ValueError(f"hydra.launcher.grace_seconds must be > 0, got {self.grace_seconds}")
