"""This module writes a configuration as JSON and reads it back exactly, for a job's process."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig, OmegaConf

from rlkit.algorithms.outside import load as load_algorithm
from rlkit.config import Config, load, schemas


def pack(config: Config) -> str:
    """Return JSON of the values and, for each group, the name of the dataclass that holds them."""
    groups = {f.name: getattr(config, f.name) for f in fields(config)}
    classes = {name: type(v).__name__ for name, v in groups.items() if is_dataclass(v)}
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return json.dumps({"classes": classes, "values": container})


def unpack(text: str) -> Config:
    """Return the checked configuration that `pack` wrote; raises ConfigError with one line."""
    packed = json.loads(text)
    nodes = {(schema.group, schema.node.__name__): schema.node for schema in schemas()}
    root = OmegaConf.structured(Config)
    for group, name in packed["classes"].items():
        if (group, name) in nodes:
            root[group] = OmegaConf.structured(nodes[group, name])
    if target := packed["values"]["algorithm"].get("fn"):
        root["algorithm"] = OmegaConf.structured(load_algorithm(target))
    merged = OmegaConf.merge(root, packed["values"])
    assert isinstance(merged, DictConfig)
    return load(merged)
