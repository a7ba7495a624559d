"""A run shows and keeps its records: in local files first, on the console, in an optional mirror.

`base` has the records and the `Tracker` Protocol, `build_tracker` makes one from the config;
`read_metrics`, `read_evals` and `read_samples` read a run's folder back.
"""

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import (
    EvalRecord,
    Interval,
    Level,
    Outcome,
    Phase,
    RunInfo,
    SampleRow,
    Status,
    StepRecord,
    Tracker,
    TrackingError,
)
from rlkit.tracking.build import build_tracker
from rlkit.tracking.completions import read_samples
from rlkit.tracking.config import (
    SCHEMAS,
    ConsoleMode,
    MirrorConfig,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
    WandbMode,
)
from rlkit.tracking.files import comparable
from rlkit.tracking.intervals import evaluate
from rlkit.tracking.read import read_evals, read_metrics
from rlkit.tracking.salvage import holes

__all__ = [
    "SCHEMAS",
    "ConsoleMode",
    "EvalRecord",
    "Interval",
    "Level",
    "MirrorConfig",
    "Outcome",
    "Phase",
    "Redactor",
    "RunInfo",
    "SampleRow",
    "Status",
    "StepRecord",
    "TensorboardConfig",
    "Tracker",
    "TrackerConfig",
    "TrackingError",
    "TrackioConfig",
    "WandbConfig",
    "WandbMode",
    "build_tracker",
    "comparable",
    "evaluate",
    "holes",
    "read_evals",
    "read_metrics",
    "read_samples",
]
