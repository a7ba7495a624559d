"""The configuration that a run's folder keeps holds no secret; it names variables instead."""

from __future__ import annotations

import os
import sys

from omegaconf import DictConfig, ListConfig, OmegaConf

from rlkit.config import Config, flatten
from rlkit.runtime.redact import Redactor

_NAMES = ("task.columns",)
"""Mappings of names to names: a column that is called `key` is no secret."""


def redactor_of(config: Config) -> Redactor:
    """Return what knows the secrets of this process and of the options of a run."""
    leaves = {k: v for k, v in flatten(config).items() if not k.startswith(_NAMES)}
    return Redactor.collect(environ=os.environ, argv=sys.argv, config=leaves)


def masked_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, loadable without rlkit, without secrets.

    A secret reads `***`: a resumed run gets it from its command line, or from `env:NAME`.
    """
    node = OmegaConf.structured(config)
    _mask(node, redactor_of(config), prefix="")
    return OmegaConf.to_yaml(node)


def _mask(node: DictConfig | ListConfig, redactor: Redactor, *, prefix: str) -> None:
    names = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        key = prefix if isinstance(node, ListConfig) else f"{prefix}.{name}".lstrip(".")
        value = node[name]
        if isinstance(value, DictConfig | ListConfig):
            _mask(value, redactor, prefix=key)
        elif type(value) is str and not key.startswith(_NAMES):
            hidden = redactor.leaf(key, value)
            if hidden != value:
                node[name] = hidden
