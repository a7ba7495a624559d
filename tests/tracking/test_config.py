"""Every option of the group composes, every bad value is refused with key, rule and value."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import rlkit.conf
from rlkit.tracking import (
    SCHEMAS,
    ConsoleMode,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
    WandbMode,
)


def composed(option: str, overrides: list[str]) -> Any:
    store = ConfigStore.instance()
    for schema in SCHEMAS:
        store.store(group=f"schema/{schema.group}", name=schema.name, node=schema.node)
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        config = compose(f"tracker/{option}", [f"tracker.{override}" for override in overrides])
    return OmegaConf.to_object(config.tracker)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_every_option_composes_to_its_defaults(schema: Any) -> None:
    config = composed(schema.name, ["console=plain", "table_steps=3", "plot=false"])
    assert config == schema.node(console=ConsoleMode.plain, table_steps=3, plot=False)
    assert type(config) is schema.node


def test_there_is_one_file_for_each_schema() -> None:
    folder = Path(rlkit.conf.__file__).parent / "tracker"
    assert sorted(f.stem for f in folder.iterdir()) == sorted(s.name for s in SCHEMAS)


def test_options_of_mirrors() -> None:
    wandb = composed("wandb", ["mode=offline", "entity=lab", "project=p", "timeout_seconds=5"])
    assert wandb == WandbConfig(
        mode=WandbMode.offline, entity="lab", project="p", timeout_seconds=5.0
    )
    assert composed("trackio", ["space_id=a/b"]) == TrackioConfig(space_id="a/b")
    assert composed("tensorboard", []) == TensorboardConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TrackerConfig(table_steps=0),
            "tracker.table_steps must be >= 1, got 0",
        ),
        (
            lambda: WandbConfig(project=""),
            "tracker.project must not be empty, got ''",
        ),
        (
            lambda: TrackioConfig(timeout_seconds=0.0),
            "tracker.timeout_seconds must be in (0, 25], got 0.0",
        ),
        (
            lambda: TensorboardConfig(timeout_seconds=26.0),
            "tracker.timeout_seconds must be in (0, 25], got 26.0",
        ),
        (
            lambda: WandbConfig(timeout_seconds=float("nan")),
            "tracker.timeout_seconds must be in (0, 25], got nan",
        ),
        (
            lambda: WandbConfig(table_steps=-1),
            "tracker.table_steps must be >= 1, got -1",
        ),
    ],
)
def test_bad_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "override", ["consle=plain", "console=fancy", "table_steps=x", "entity=lab"]
)
def test_unknown_keys_and_wrong_types_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed("local", [override])


def test_there_is_nowhere_to_write_an_api_key() -> None:
    names = {f.name for schema in SCHEMAS for f in fields(schema.node)}
    assert not [name for name in names if "key" in name or "token" in name]
