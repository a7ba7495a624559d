"""This module reads what commands need of a finished run's folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.cli import UsageError
from rlkit.config import DeviceChoice
from rlkit.models import ModelConfig
from rlkit.schema import Options
from rlkit.training.memory_config import MemoryConfig


@dataclass(kw_only=True, slots=True)
class RunOptions(Options):
    """This record holds what a run's config.yaml says about its model."""

    seed: int = MISSING
    device: DeviceChoice = MISSING
    model: ModelConfig = MISSING
    memory: MemoryConfig = MISSING


def read_options(run: Path, *, key: str) -> RunOptions:
    """Return the model that `run` trained.

    Raises UsageError, naming `key`, when there is no such run.
    """
    try:
        saved = yaml.safe_load((run / "config.yaml").read_text())
        values = {field.name: saved[field.name] for field in fields(RunOptions)}
        options = OmegaConf.to_object(OmegaConf.merge(RunOptions, values))
    except (OSError, yaml.YAMLError, KeyError, TypeError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{key} must be the folder of a run, got {run} ({reason})") from error
    assert isinstance(options, RunOptions)
    return options
