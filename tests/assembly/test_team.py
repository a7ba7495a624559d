"""Ranks that cannot be one engine are refused in one line, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rank_runs import Part

from rlkit.assembly.team import check_team, team_of
from rlkit.config import Config, ConfigError
from rlkit.generation.vllm.config import VLLMGeneratorConfig
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.ranks import ALONE


def config_of(*overrides: str) -> Config:
    register()
    (config,) = preflight(["run_dir=new", "gpus=2", *overrides])
    return config


TEAM = ("generator=vllm", "generator.tensor_parallel=2")


def test_one_process_is_no_engine_of_two_ranks() -> None:
    config = config_of(*TEAM)
    with pytest.raises(ConfigError) as caught:
        check_team(config, ALONE, has_environment=False)
    assert str(caught.value) == "generator.tensor_parallel must be 1 in one process, got 2"
    check_team(config, Part(0, 2), has_environment=False)
    alone = replace(config, generator=VLLMGeneratorConfig())
    check_team(alone, ALONE, has_environment=True)
    assert team_of(alone, ALONE) is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (TEAM, "generator.tensor_parallel must be 1 with an environment, got 2"),
        (
            ("generator=hf", "memory.weights=sharded"),
            "memory.weights must be whole with an environment, got sharded",
        ),
    ],
)
def test_an_environment_may_answer_two_ranks_otherwise(options: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_team(config_of(*options), Part(0, 2), has_environment=True)
    assert str(caught.value) == line
