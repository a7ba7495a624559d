"""Algorithms as bundles of pure functions, and the registry from configuration to algorithm.

Adding one: a module with a config dataclass and a factory, its line in `_FACTORIES`, a YAML file in
`conf/algorithm`, a test in `tests/algorithms`; `tests/test_contract.py` finds it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlkit.algorithms.aggregation import Aggregation
from rlkit.algorithms.base import AlgorithmConfig, GroupFilter, Objective
from rlkit.algorithms.correction import CorrectionConfig
from rlkit.algorithms.grpo import GRPOConfig, grpo
from rlkit.algorithms.kl import KLConfig
from rlkit.algorithms.online_dpo import online_dpo
from rlkit.algorithms.online_dpo_config import OnlineDPOConfig
from rlkit.algorithms.ppo import PPOConfig, critic_only, ppo
from rlkit.algorithms.ratio import RatioConfig
from rlkit.algorithms.rloo import RLOOConfig, rloo
from rlkit.schema import Schema
from rlkit.types import Algorithm, Setting

__all__ = [
    "ALGORITHMS",
    "SCHEMAS",
    "Aggregation",
    "AlgorithmConfig",
    "CorrectionConfig",
    "GroupFilter",
    "KLConfig",
    "Objective",
    "RatioConfig",
    "Schema",
    "Warmup",
    "build",
    "warmup",
]


class Entry(NamedTuple):
    """An algorithm in the registry."""

    name: str
    config: type[AlgorithmConfig]
    factory: Factory


class Warmup(NamedTuple):
    """Another algorithm for the first optimisation steps of a run."""

    algorithm: Algorithm
    num_steps: int


Factory = Callable[[Any, Objective, Setting], Algorithm]

ALGORITHMS: tuple[Entry, ...] = (
    Entry("grpo", GRPOConfig, grpo),
    Entry("rloo", RLOOConfig, rloo),
    Entry("ppo", PPOConfig, ppo),
    Entry("online_dpo", OnlineDPOConfig, online_dpo),
)

SCHEMAS: tuple[Schema, ...] = (
    *(Schema("algorithm", entry.name, entry.config) for entry in ALGORITHMS),
    Schema("kl", "base", KLConfig),
    Schema("ratio", "base", RatioConfig),
    Schema("correction", "base", CorrectionConfig),
)

_FACTORIES: Mapping[type[AlgorithmConfig], Entry] = {entry.config: entry for entry in ALGORITHMS}


def build(objective: Objective, setting: Setting) -> Algorithm:
    """The algorithm that `objective` describes, for a run with these facts.

    Raises `ValueError` naming the key, the rule and what to set instead when a combination is
    impossible or a switch would have no effect.
    """
    entry = _FACTORIES.get(type(objective.algorithm))
    if entry is None:
        known = ", ".join(sorted(config.__name__ for config in _FACTORIES))
        raise ValueError(
            f"algorithm must be one of {known}, got {type(objective.algorithm).__name__}"
        )
    return entry.factory(objective.algorithm, objective, setting)


def warmup(objective: Objective, setting: Setting) -> Warmup | None:
    """What runs instead of the algorithm at the start: PPO's critic alone, if asked for."""
    cfg = objective.algorithm
    if isinstance(cfg, PPOConfig) and cfg.value_pretrain_steps > 0:
        return Warmup(critic_only(cfg, objective, setting), cfg.value_pretrain_steps)
    return None
