"""A resumed run must share some options with the original, across versions of rlkit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from rlkit.assembly.identity import identity, identity_hash
from rlkit.config import Config, ConfigError, Resume, to_yaml
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.launch.run_folder import check_checkpoints, check_same_run, claim
from rlkit.launch.sweep_folder import job_id
from rlkit.schema import NEWER_OPTIONS
from rlkit.training.checkpoint import Checkpoint, RunProgress, save

DATASET = ("task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q")


def config_of(*overrides: str) -> Config:
    register()
    (config,) = preflight(["run_dir=new", *DATASET, *overrides])
    return config


def saved(folder: Path, config: Config, *, without: tuple[str, ...] = ()) -> Path:
    """The folder of a run whose version of rlkit did not have the options `without`."""
    values = yaml.safe_load(to_yaml(config))
    for key in without:
        *groups, leaf = key.split(".")
        node = values
        for group in groups:
            node = node.get(group) or {}
        node.pop(leaf, None)
        if groups and not node:  # a whole group of options is newer
            values.pop(groups[0])
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    folder = saved(tmp_path, config_of(), without=tuple(NEWER_OPTIONS))
    check_same_run(config_of(), folder)
    with pytest.raises(ConfigError, match=r"reward.special_tokens must be drop as in the run"):
        check_same_run(config_of("reward.special_tokens=keep"), folder)


def test_how_ranks_share_the_work_is_no_part_of_an_identity() -> None:
    one = config_of("generator=vllm")
    two = ("gpus=2", "generator.tensor_parallel=2", "memory.weights=sharded")
    assert identity_hash(config_of("generator=vllm", *two)) == identity_hash(one)


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


def test_an_option_that_the_run_did_not_know_had_its_default(tmp_path: Path) -> None:
    """Any option, not only those that NEWER_OPTIONS lists."""
    folder = saved(tmp_path, config_of(), without=("optim.weight_decay", "evaluation.kl"))
    assert check_same_run(config_of(), folder) == []
    with pytest.raises(ConfigError, match=r"optim\.weight_decay must be 0\.0 as in the run"):
        check_same_run(config_of("optim.weight_decay=0.1"), folder)
    with pytest.raises(ConfigError, match=r"evaluation\.kl must be exact as in the run"):
        check_same_run(config_of("evaluation.kl=k3"), folder)


def test_a_configuration_that_was_cut_is_known_by_its_checkpoints(tmp_path: Path) -> None:
    config = config_of("optim.learning_rate=0.5", "prompts_per_step=3")
    progress = RunProgress(step=1, updates=1, skipped_in_row=0, config_hash=identity_hash(config))
    whole = Checkpoint(parameters={"a": torch.ones(1)}, moments={}, progress=progress)
    save(tmp_path / "checkpoints", whole, keep_last=2)
    text = to_yaml(config)
    for end in range(0, len(text), 331):
        (tmp_path / "config.yaml").write_text(text[:end])
        assert len(check_same_run(config, tmp_path)) <= 1
        with pytest.raises(ConfigError, match=r"must be|checkpoints are of another"):
            check_same_run(config_of("optim.learning_rate=0.25"), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "a: [", "- 1\n", "\0", "seed", "[" * 3000])
def test_a_damaged_configuration_blocks_no_run_of_the_same_one(tmp_path: Path, text: str) -> None:
    config = config_of()
    progress = RunProgress(step=1, updates=1, skipped_in_row=0, config_hash=identity_hash(config))
    save(
        tmp_path / "checkpoints",
        Checkpoint(parameters={"a": torch.ones(1)}, moments={}, progress=progress),
        keep_last=2,
    )
    (tmp_path / "config.yaml").write_text(text)
    (note,) = check_same_run(config, tmp_path)
    assert "config.yaml could not be read" in note and "\n" not in note
    with pytest.raises(ConfigError, match=r"checkpoints are of another configuration"):
        check_same_run(config_of("kl.beta=0.5"), tmp_path)


def resuming(how: str) -> Config:
    return config_of(f"resume={how}") if how == "auto" else replace(config_of(), resume=Resume.must)


@pytest.mark.parametrize("how", ["auto", "must"])
def test_damaged_checkpoints_alone_are_no_reason_to_begin_anew(tmp_path: Path, how: str) -> None:
    for step in (1, 2):
        progress = RunProgress(step=step, updates=1, skipped_in_row=0, config_hash="")
        whole = Checkpoint(parameters={"a": torch.ones(1)}, moments={}, progress=progress)
        save(tmp_path / "checkpoints", whole, keep_last=2)
    check_checkpoints(resuming(how), tmp_path)
    (tmp_path / "checkpoints/step-000002/adapter.safetensors").write_bytes(b"")
    check_checkpoints(resuming(how), tmp_path)
    (tmp_path / "checkpoints/step-000001/state.json").unlink()
    with pytest.raises(ConfigError, match=r"must hold an intact checkpoint .* got 2 damaged"):
        check_checkpoints(resuming(how), tmp_path)


def test_without_checkpoints_only_auto_begins_at_the_start(tmp_path: Path) -> None:
    check_checkpoints(resuming("auto"), tmp_path / "new")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="must be a run with checkpoints, as resume=must says"):
        check_checkpoints(resuming("must"), tmp_path)


def test_what_killed_processes_left_is_deleted_and_said(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints/.step-000004.99999999.partial"
    half.mkdir(parents=True)
    (half / "adapter.safetensors").write_bytes(b"half")
    (tmp_path / ".status.json.99999999.partial").write_text("half")
    (tmp_path / f".report.html.{os.getppid()}.partial").write_text("of a process that lives")
    (tmp_path / "notes.partial").write_text("the user's own")
    config = replace(config_of(), resume=Resume.auto)
    with claim(config, tmp_path) as notes:
        assert notes == ["deleted 2 half-written files or folders of a killed run"]
    left = sorted(p.name for p in tmp_path.rglob("*.partial"))
    assert left == [f".report.html.{os.getppid()}.partial", "notes.partial"]
    with claim(config, tmp_path) as notes:
        assert notes == []
