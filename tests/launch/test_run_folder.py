"""A resumed run must share some options with the original, across versions of rlkit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlkit.assembly.identity import identity
from rlkit.config import Config, ConfigError, to_yaml
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.launch.run_folder import check_same_run
from rlkit.launch.sweep_folder import job_id
from rlkit.schema import NEWER_OPTIONS

DATASET = ("task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q")


def config_of(*overrides: str) -> Config:
    register()
    (config,) = preflight(["run_dir=new", *DATASET, *overrides])
    return config


def saved(folder: Path, config: Config, *, without: tuple[str, ...] = ()) -> Path:
    """The folder of a run whose version of rlkit did not have the options `without`."""
    values = yaml.safe_load(to_yaml(config))
    for key in without:
        group, _, leaf = key.rpartition(".")
        (values[group] if group else values).pop(leaf, None)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    folder = saved(tmp_path, config_of(), without=tuple(NEWER_OPTIONS))
    check_same_run(config_of(), folder)
    with pytest.raises(ConfigError, match=r"reward.special_tokens must be drop as in the run"):
        check_same_run(config_of("reward.special_tokens=keep"), folder)


def test_newer_options_at_their_old_value_are_no_part_of_an_identity() -> None:
    assert not set(NEWER_OPTIONS) & set(identity(config_of()))
    assert job_id(config_of("reward.special_tokens=drop")) == job_id(config_of())
    assert job_id(config_of("reward.special_tokens=keep")) != job_id(config_of())


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ("+model.chat_template_kwargs.a=1", "seed=0", "model.chat_template_kwargs.a"),
        ("seed=0", "+model.chat_template_kwargs.a=1", "model.chat_template_kwargs.a"),
        ("+task.columns.answer=a", "seed=0", "task.columns.answer"),
        ("task.overlong_prompts=drop", "seed=0", "task.overlong_prompts"),
        ("seed=0", "task.overlong_prompts=truncate_left", "task.overlong_prompts"),
    ],
)
def test_what_differs_is_named(before: str, now: str, key: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, config_of(before))
    with pytest.raises(ConfigError, match=rf"{key} must be .* as in the run being resumed"):
        check_same_run(config_of(now), folder)


def test_a_cure_that_only_leaves_rows_out_is_accepted(tmp_path: Path) -> None:
    folder = saved(tmp_path, config_of())
    check_same_run(config_of("task.overlong_prompts=drop", "task.bad_rows=drop"), folder)
