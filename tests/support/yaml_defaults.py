"""YAML files of `conf/` beside the defaults of the dataclasses that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlkit.config import Config, leaves, schemas
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.optim import OptimConfig

_WITHOUT_SCHEMA_LISTS = {"optim": OptimConfig, "memory": MemoryConfig}


def repeated_defaults(conf: Path, file: Path) -> list[str]:
    """Return the full keys of `file` whose value is the dataclass default and changes nothing.

    A key that a file underneath sets is no repetition: it takes that back. `model=tabular` may
    always be underneath an experiment, whose values must win.
    """
    below = _set_below(conf, file)
    if file.parent.name == "experiment":
        below |= set(_values(conf, conf / "model" / "tabular.yaml"))
    defaults = _defaults(conf, file)
    return [
        key
        for key, value in _values(conf, file).items()
        if key in defaults and key not in below and _same(defaults[key], value)
    ]


def _values(conf: Path, file: Path) -> dict[str, Any]:
    """Return the leaves that the body of `file` sets, by their full keys."""
    body = _read(file)
    own = {key: value for key, value in body.items() if key not in ("defaults", "hydra")}
    group = file.parent.name
    is_global = file.parent == conf or "@package _global_" in file.read_text()
    return dict(leaves(own if is_global or not own else {group: own}))


def _read(file: Path) -> Mapping[str, Any]:
    container = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _chosen(conf: Path, file: Path) -> list[tuple[str, str]]:
    """Return (group, option) of each entry of the defaults list of `file`, schemas included."""
    found = []
    for entry in _read(file).get("defaults", []):
        if isinstance(entry, Mapping):
            ((key, option),) = entry.items()
            group = str(key).removeprefix("override ").strip("/").split("@")[0]
            found.append((group, str(option)))
        elif "schema/" in entry:
            _, group, option = entry.strip("/").split("@")[0].split("/")
            found.append((f"schema/{group}", option))
        elif entry not in ("_self_", "schema"):
            found.append((file.parent.name, entry))
    return found


def _set_below(conf: Path, file: Path) -> set[str]:
    """Return the keys that the files of the defaults list set, theirs included."""
    keys: set[str] = set()
    for group, option in _chosen(conf, file):
        other = conf / group / f"{option}.yaml"
        if other.exists():
            keys |= set(_values(conf, other)) | _set_below(conf, other)
    return keys


def _defaults(conf: Path, file: Path) -> dict[str, Any]:
    """Return the defaults that `file` could repeat: of its option's class, and of the root."""
    found = dict(leaves(_of_class(Config)))
    for group, option in _all_chosen(conf, file):
        node = _WITHOUT_SCHEMA_LISTS.get(group) or next(
            (s.node for s in schemas() if (s.group, s.name) == (group, option)), None
        )
        if node is not None:
            found.update(leaves({group: _of_class(node)}))
    return found


def _all_chosen(conf: Path, file: Path) -> list[tuple[str, str]]:
    """Return the schemas that `file` reaches over its defaults list and those of its parents."""
    found = []
    for group, option in _chosen(conf, file):
        if group.startswith("schema/"):
            found.append((group.removeprefix("schema/"), option))
        elif (conf / group / f"{option}.yaml").exists():
            found += _all_chosen(conf, conf / group / f"{option}.yaml")
    return found


def _of_class(node: type) -> dict[str, Any]:
    """Return the defaults of a config dataclass as nested mappings; missing ones are left out."""
    found: dict[str, Any] = {}
    for f in fields(node):
        if f.default is not MISSING:
            value: Any = f.default
        elif f.default_factory is not MISSING:
            value = f.default_factory()
        else:
            continue
        found[f.name] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
    return found


def _same(default: object, value: object) -> bool:
    """Return whether a value of YAML means what the default of a dataclass means."""
    if isinstance(default, Enum):
        return str(default.value) == str(yaml.safe_load(str(value)) or value)
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        try:
            return float(default) == float(str(value))
        except ValueError:
            return False
    return default == value
