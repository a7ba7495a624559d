"""Algorithms are bundles of pure functions; a registry leads from configuration to algorithm.

An algorithm is a config dataclass that extends `AlgorithmConfig`, and a factory
`(objective: Objective[Config], setting: Setting) -> Algorithm`. Adding one here takes a module, its
line in `ALGORITHMS`, a YAML file in `conf/algorithm` and a test in `tests/algorithms`. One that
lives in a file or package of its own needs none of these: see `rlkit.algorithms.outside`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlkit.algorithms.grpo import grpo
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.base import AlgorithmConfig, GroupFilter, Objective
from rlkit.algorithms.objective.correction import CorrectionConfig
from rlkit.algorithms.objective.kl import KLConfig
from rlkit.algorithms.objective.ratio import RatioConfig
from rlkit.algorithms.online_dpo import online_dpo
from rlkit.algorithms.outside import Factory, factory_of, options_of
from rlkit.algorithms.ppo import ppo
from rlkit.algorithms.rloo import rloo
from rlkit.algorithms.sft import sft
from rlkit.schema import Schema
from rlkit.types import Algorithm, Setting

__all__ = [
    "ALGORITHMS",
    "SCHEMAS",
    "Aggregation",
    "AlgorithmConfig",
    "CorrectionConfig",
    "Entry",
    "Factory",
    "GroupFilter",
    "KLConfig",
    "Objective",
    "RatioConfig",
    "Schema",
    "build",
]


class Entry(NamedTuple):
    """This record names an algorithm of this repository."""

    name: str
    """Its option of the group `algorithm`."""
    config: type[AlgorithmConfig]
    """The dataclass of its options, which the annotations of the factory name."""
    factory: Factory

    @classmethod
    def of(cls, name: str, factory: Factory) -> Entry:
        """Return the entry of a factory of this repository."""
        return cls(name, options_of(factory, target=name), factory)


ALGORITHMS: tuple[Entry, ...] = (
    Entry.of("grpo", grpo),
    Entry.of("rloo", rloo),
    Entry.of("ppo", ppo),
    Entry.of("online_dpo", online_dpo),
    Entry.of("sft", sft),
)

SCHEMAS: tuple[Schema, ...] = (
    *(Schema("algorithm", entry.name, entry.config) for entry in ALGORITHMS),
    Schema("kl", "base", KLConfig),
    Schema("ratio", "base", RatioConfig),
    Schema("correction", "base", CorrectionConfig),
)

_FACTORIES: Mapping[type[AlgorithmConfig], Factory] = {e.config: e.factory for e in ALGORITHMS}


def build(objective: Objective[AlgorithmConfig], setting: Setting) -> Algorithm:
    """Build the algorithm that `objective` describes, for a run with these facts.

    Raises ValueError naming the key, the rule and what to set instead when a combination is
    impossible or a switch would have no effect.
    """
    config = type(objective.algorithm)
    factory = _FACTORIES.get(config) or factory_of(config)
    if factory is None:
        known = ", ".join(sorted(c.__name__ for c in _FACTORIES))
        raise ValueError(f"algorithm must be one of {known}, got {config.__name__}")
    return factory(objective, setting)
