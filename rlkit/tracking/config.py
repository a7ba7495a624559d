"""The options of the `tracker` group say how a run is shown, and which service mirrors it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlkit.schema import Options, Schema


class ConsoleMode(StrEnum):
    """This choice says how a run shows itself on the terminal."""

    auto = "auto"
    """`live` on a terminal, `plain` elsewhere (pipes, CI)."""
    live = "live"
    """A table and progress bars that are redrawn in place."""
    plain = "plain"
    """One line a step."""
    quiet = "quiet"
    """Warnings, errors and the results at the end."""


class WandbMode(StrEnum):
    """This choice says where Weights & Biases keeps the run."""

    auto = "auto"
    """The mode that the environment variable WANDB_MODE says; online when it is unset."""
    online = "online"
    offline = "offline"
    """In the run folder, for `wandb sync`."""


@dataclass(kw_only=True, slots=True)
class TrackerConfig(Options):
    """This tracker has local files and the console; the others add a mirror and its options."""

    console: ConsoleMode = ConsoleMode.auto
    """How the run shows itself on the terminal."""
    table_steps: int = 12
    """Steps in the live table, >= 1; a small terminal shows fewer."""
    completions: bool = True
    """Keep every sampled completion as Parquet, about 1 kB a sample."""
    plot: bool = True
    """Draw the curves at the end, as PNG and SVG."""
    report: bool = True
    """Write report.html at the end; `rlkit report` does it at any time."""
    metrics_every: int = 1
    """Steps between the lines of `metrics.jsonl`, >= 1; the first and the last step are always
    there. Each line is flushed to the disk, which dominates steps of a few milliseconds."""

    def __post_init__(self) -> None:
        if self.table_steps < 1:
            raise ValueError(f"tracker.table_steps must be >= 1, got {self.table_steps}")
        if self.metrics_every < 1:
            raise ValueError(f"tracker.metrics_every must be >= 1, got {self.metrics_every}")


@dataclass(kw_only=True, slots=True)
class MirrorConfig(TrackerConfig):
    """A service is sent a copy of the metrics; it can neither stop nor hold the run."""

    project: str = "rlkit"
    """Project the run belongs to; not empty."""
    completions_per_step: int = 8
    """Samples of each step and evaluation that the service is sent, >= 0; 0 = none."""
    timeout_seconds: float = 20.0
    """Silence after which the mirror is given up, and the most it may add to the end of the run;
    in (0, 25]."""

    def __post_init__(self) -> None:
        TrackerConfig.__post_init__(self)
        if not self.project:
            raise ValueError("tracker.project must not be empty, got ''")
        if self.completions_per_step < 0:
            rule = "tracker.completions_per_step must be >= 0"
            raise ValueError(f"{rule}, got {self.completions_per_step}")
        if not 0 < self.timeout_seconds <= 25:
            rule = "tracker.timeout_seconds must be in (0, 25]"
            raise ValueError(f"{rule}, got {self.timeout_seconds}")


@dataclass(kw_only=True, slots=True)
class WandbConfig(MirrorConfig):
    """Weights & Biases takes its API key from `wandb login` or WANDB_API_KEY, never from here."""

    entity: str | None = None
    """Team or user; None = the account's default."""
    mode: WandbMode = WandbMode.auto
    """auto follows WANDB_MODE; online needs an account, offline does not."""


@dataclass(kw_only=True, slots=True)
class TrackioConfig(MirrorConfig):
    """Trackio shows the run on a local dashboard, or in a Hugging Face Space."""

    space_id: str | None = None
    """Space `user/name` that shows the run; None = local only."""


@dataclass(kw_only=True, slots=True)
class TensorboardConfig(MirrorConfig):
    """TensorBoard reads event files in the run folder."""


SCHEMAS = (
    Schema("tracker", "local", TrackerConfig),
    Schema("tracker", "wandb", WandbConfig),
    Schema("tracker", "trackio", TrackioConfig),
    Schema("tracker", "tensorboard", TensorboardConfig),
)
