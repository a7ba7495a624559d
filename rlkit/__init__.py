"""rlkit: reinforcement learning of language models on one GPU, pure functions over rollouts.

    rlkit.train("task=echo", "steps=12")     train a run, as the command line does
    rlkit.compose("algorithm=dapo")          the checked configuration of a run
    rlkit.load_run("runs/mine")              metrics, evaluations and completions of a run
    rlkit.functional                         every estimator as one pure function
    rlkit.types                              the records that all of it speaks

Names are imported when they are first used, so `import rlkit` itself loads no library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkit.config import Config, ConfigError
    from rlkit.launch.api import RunFailed, SavedRun, compose, load_run, train
    from rlkit.types import (
        Algorithm,
        Completion,
        Generator,
        LossOutput,
        OutputSpec,
        PolicyOutput,
        Prompt,
        RewardFn,
        Rollout,
        RolloutBatch,
        SamplingConfig,
        ScoredRollout,
        Setting,
        TrainBatch,
    )

__version__ = "0.2.0"

_TYPES = (
    *("Algorithm", "Completion", "Generator", "LossOutput", "OutputSpec", "PolicyOutput"),
    *("Prompt", "RewardFn", "Rollout", "RolloutBatch", "SamplingConfig", "ScoredRollout"),
    *("Setting", "TrainBatch"),
)
_MODULE_OF = {
    **dict.fromkeys(_TYPES, "rlkit.types"),
    **dict.fromkeys(("Config", "ConfigError"), "rlkit.config"),
    **dict.fromkeys(("RunFailed", "SavedRun", "compose", "load_run", "train"), "rlkit.launch.api"),
}

__all__ = [
    "Algorithm",
    "Completion",
    "Config",
    "ConfigError",
    "Generator",
    "LossOutput",
    "OutputSpec",
    "PolicyOutput",
    "Prompt",
    "RewardFn",
    "Rollout",
    "RolloutBatch",
    "RunFailed",
    "SamplingConfig",
    "SavedRun",
    "ScoredRollout",
    "Setting",
    "TrainBatch",
    "__version__",
    "compose",
    "load_run",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in ("functional", "types"):  # rooms that need no import line of their own
        return importlib.import_module(f"rlkit.{name}")
    raise AttributeError(f"module 'rlkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "functional", "types"]
