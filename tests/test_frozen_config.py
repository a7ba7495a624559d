"""A loaded configuration is read only, and stays what OmegaConf, pickle and `replace` can use."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlkit.algorithms.objective.policy_gradient import PolicyGradientConfig
from rlkit.config import Config, schemas
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.launch.settings import IsolatedConfig
from rlkit.schema import Options
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.optim import OptimConfig

NODES = sorted(
    {schema.node for schema in schemas()} | {OptimConfig, MemoryConfig, IsolatedConfig},
    key=lambda node: node.__name__,
)


def loaded(*overrides: str) -> Config:
    register()
    (config,) = preflight(["run_dir=new", *overrides])
    return config


def within(options: object) -> Iterator[Any]:
    """Every config object of a configuration, the root too."""
    if is_dataclass(options):
        yield options
        for field in fields(options):
            yield from within(getattr(options, field.name))
    elif isinstance(options, dict):
        for value in options.values():
            yield from within(value)


def assert_refuses(options: object) -> None:
    assert is_dataclass(options)
    for field in fields(options):
        before = getattr(options, field.name)
        rule = rf"{type(options).__name__}\.{field.name} is read only after it is made"
        with pytest.raises(AttributeError, match=rule):
            setattr(options, field.name, before)
        with pytest.raises(AttributeError, match=rule):
            delattr(options, field.name)
        assert getattr(options, field.name) is before


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_schema_refuses_assignment(node: type[Any]) -> None:
    options = node()
    assert isinstance(options, Options)
    assert_refuses(options)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=tabular", "algorithm=ppo_tabular"),
        ("generator=vllm", "memory=qlora", "algorithm=online_dpo"),
        ("task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q", "reward=exact"),
        ("+reward.functions.short.fn=cosine_length", "tracker=wandb"),
    ],
    ids=" ".join,
)
def test_a_loaded_configuration_refuses_assignment_at_every_depth(
    overrides: tuple[str, ...],
) -> None:
    found = list(within(loaded(*overrides)))
    assert len(found) >= 15
    for options in found:
        assert_refuses(options)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_equal_and_read_only_too(copied: Any) -> None:
    config = loaded("+reward.functions.short.fn=cosine_length", "seed=3")
    again = copied(config)
    assert again == config and again is not config
    for options in within(again):
        assert_refuses(options)


def test_replace_changes_a_copy_and_checks_it() -> None:
    config = loaded()
    moved = replace(config, seed=7, memory=replace(config.memory, tokens_per_microbatch=5))
    assert (config.seed, moved.seed) == (0, 7)
    assert (config.memory.tokens_per_microbatch, moved.memory.tokens_per_microbatch) == (None, 5)
    with pytest.raises(ValueError, match=r"^seed must be in \[0, 2\*\*31\), got -1$"):
        replace(config, seed=-1)


def test_nodes_of_omegaconf_stay_open_to_overrides() -> None:
    node = OmegaConf.structured(OptimConfig)
    node.learning_rate = 0.5
    merged = OmegaConf.merge(node, {"warmup_steps": 3})
    options = OmegaConf.to_object(merged)
    assert options == OptimConfig(learning_rate=0.5, warmup_steps=3)


def test_a_subclass_without_slots_is_read_only_as_well() -> None:
    @dataclass(kw_only=True)
    class Mine(PolicyGradientConfig):
        sharpness: float = 2.0
        group_size: int = 6  # overrides a slot of the base by an attribute of the class

    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Mine), {"sharpness": 3.0}))
    assert isinstance(options, Mine) and (options.sharpness, options.group_size) == (3.0, 6)
    assert_refuses(options)
