"""The plugins that bring a sweep's jobs to other machines are extras; this module asks for them."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlkit.config import ConfigError

_CHOICE = "hydra/launcher="
SLURM, RAY = "submitit_slurm", "ray"
_RAY_INIT = "hydra.launcher.ray.init"


class _Engine(NamedTuple):
    extra: str
    plugin: str
    commands: tuple[str, ...] = ()


_SUBMITIT = "hydra_submitit_launcher"
_ENGINES = {
    RAY: _Engine("ray", "hydra_ray_launcher"),
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


def needed_overrides(overrides: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return what the plugin of the chosen launcher needs to be told beside the user's words.

    hydra-ray-launcher 1.2.2 always gives Ray the size of an object store, and Ray refuses that
    where it joins a cluster that exists.
    """
    given = [o.lstrip("+").partition("=")[::2] for o in overrides]
    keys = {key for key, _ in given}
    joins = "RAY_ADDRESS" in environ or any(
        key == f"{_RAY_INIT}.address" and value not in ("", "null", "local") for key, value in given
    )
    size = f"{_RAY_INIT}.object_store_memory"
    return (
        [f"+{size}=null"] if chosen_engine(overrides) == RAY and joins and size not in keys else []
    )


def _is_installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False
