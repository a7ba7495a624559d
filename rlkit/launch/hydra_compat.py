"""This module names every private name of Hydra in rlkit; see `rlkit.runtime.private_names`.

Importing this module checks that they exist. It is imported before any job is composed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.runtime.private_names import find, require_names

require_names(
    "hydra-core",
    "hydra._internal.callbacks:Callbacks",
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments",
    "hydra._internal.utils:get_args_parser",
)

from hydra._internal.callbacks import Callbacks as Callbacks  # noqa: E402
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402
from hydra._internal.utils import get_args_parser as get_args_parser  # noqa: E402
from hydra.core.override_parser.types import Override  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

_APPLY = find("hydra._internal.config_loader_impl:ConfigLoaderImpl._apply_overrides_to_config")


def can_apply_values() -> bool:
    """Return whether `apply_values` works; without it, every job is composed anew in 0.2 s."""
    return _APPLY is not None


def apply_values(values: Sequence[Override], config: DictConfig) -> None:
    """Set what the overrides `values` (`seed=3`) say in a composed `config`, as Hydra does last."""
    assert _APPLY is not None
    _APPLY(list(values), config)


def expand_sweep(overrides: Sequence[Override]) -> list[list[list[str]]]:
    """Return overrides of every job, in batches; Hydra's own sweeper takes all choices."""
    return BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
