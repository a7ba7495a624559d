"""The plugins that bring a sweep's jobs to other machines are extras; this module asks for them."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from rlkit.config import ConfigError

_CHOICE = "hydra/launcher="
SLURM = "submitit_slurm"


class _Engine(NamedTuple):
    extra: str
    plugin: str
    commands: tuple[str, ...] = ()


_SUBMITIT = "hydra_submitit_launcher"
_ENGINES = {
    "ray": _Engine("ray", "hydra_ray_launcher"),
    "submitit_local": _Engine("slurm", _SUBMITIT),
    SLURM: _Engine("slurm", _SUBMITIT, ("sbatch", "srun", "squeue", "scontrol")),
}


def chosen_engine(overrides: Sequence[str]) -> str:
    """Return the launcher that the overrides choose; empty when they leave it at its default."""
    chosen = [o.removeprefix(_CHOICE) for o in overrides if o.startswith(_CHOICE)]
    return chosen[-1] if chosen else ""


def check_engine(overrides: Sequence[str]) -> None:
    """Raise ConfigError when the plugin of the chosen launcher, or a command it needs, is not here.

    Hydra itself would call the launcher unknown.
    """
    name = chosen_engine(overrides)
    engine = _ENGINES.get(name)
    if engine is None:
        return
    if not _is_installed(engine.plugin):
        raise ConfigError(f"{_CHOICE}{name} needs: pip install 'rlkit-lm[{engine.extra}]'")
    missing = [command for command in engine.commands if shutil.which(command) is None]
    if missing:
        raise ConfigError(
            f"{_CHOICE}{name} must be started on a machine with Slurm's commands, got none of "
            f"{', '.join(missing)} on PATH"
        )


def _is_installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False
