"""This module makes objectives from `conf/` by name, without the rest of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from rlkit.algorithms import (
    SCHEMAS,
    AlgorithmConfig,
    CorrectionConfig,
    KLConfig,
    Objective,
    RatioConfig,
)
from rlkit.schema import Options
from rlkit.training.memory_config import MemoryConfig


@dataclass
class ObjectiveGroups(Options):
    """This record has the four groups of an objective, and one that presets override besides."""

    algorithm: AlgorithmConfig = MISSING
    kl: KLConfig = MISSING
    ratio: RatioConfig = MISSING
    correction: CorrectionConfig = MISSING
    memory: MemoryConfig = MISSING
    """Not part of an objective, but presets may override it."""


@lru_cache
def composed(*overrides: str) -> Objective[AlgorithmConfig]:
    """Return the objective of `rlkit {overrides}`, with the root's defaults and order of groups."""
    store = ConfigStore.instance()
    store.store(name="oracle_axes", node=ObjectiveGroups)
    for schema in SCHEMAS:
        store.store(group=f"schema/{schema.group}", name=schema.name, node=schema.node)
    store.store(group="schema/memory", name="memory", node=MemoryConfig)
    groups = [{"kl": "reverse_k3"}, {"ratio": "token"}, {"correction": "none"}, {"memory": "auto"}]
    defaults = ["oracle_axes", *groups, {"algorithm": "grpo"}, "_self_"]
    store.store(name="oracle_root", node={"defaults": defaults})
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        axes = cast(
            ObjectiveGroups, OmegaConf.to_object(compose("oracle_root", overrides=list(overrides)))
        )
    return Objective.of(axes)
