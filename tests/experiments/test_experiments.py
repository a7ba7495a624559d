"""Every experiment has its presets, and every preset is a sweep of different, checked jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.assembly.identity import identity_hash
from rlkit.config import Config
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.tabular import TabularModelConfig
from rlkit.types import KLDirection

ROOT = Path(__file__).parents[2]
NAMES = (
    "adv_norm", "algorithms", "inner_epochs", "kl_detach", "kl_grid", "lora_rank", "loss_agg",
    "rollout_precision",
)  # fmt: skip
RECIPES = {"gsm8k": ("gsm8k_sft", "gsm8k_grpo", "gsm8k_rl")}
"""Experiments of runs that follow each other, and their presets."""
NO_TABLE = ("lora_rank",)
"""A table of logits has no rank."""


def sweep(*arguments: str) -> list[Config]:
    return preflight(["-m", *arguments])


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.chdir(ROOT)


def test_the_presets_are_those_of_the_experiments() -> None:
    found = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    tabular = {f"{name}_tabular" for name in NAMES if name not in NO_TABLE}
    recipes = {preset for presets in RECIPES.values() for preset in presets}
    assert found == set(NAMES) | {f"{name}_smoke" for name in NAMES} | tabular | recipes
    for name in (*NAMES, *RECIPES):
        assert (ROOT / "experiments" / name / "README.md").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_gpu_sweep_composes(name: str) -> None:
    jobs = sweep(f"experiment={name}", "seed=0,4")
    assert len({identity_hash(job) for job in jobs}) == len(jobs)
    assert "seed: range(5)" in (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    assert {job.model.source for job in jobs} == {"starter"}


def test_the_recipe_evaluates_both_runs_on_the_same_questions() -> None:
    """The warm start's last evaluation must be the first of the run that starts from it."""
    (sft,), (grpo,) = (
        preflight([f"experiment={name}", "run_dir=new"]) for name in RECIPES["gsm8k"][:2]
    )
    assert sft.evaluation == grpo.evaluation and sft.evaluation.num_prompts == 1319
    assert sft.task.max_completion_length == grpo.task.max_completion_length
    assert sft.steps * sft.prompts_per_step >= 3 * 7_400 - sft.prompts_per_step
    assert grpo.kl.direction is KLDirection.none and grpo.algorithm.group_size == 16


def test_the_recipe_compares_algorithms_at_equal_samples() -> None:
    jobs = sweep("experiment=gsm8k_rl")
    assert len({identity_hash(job) for job in jobs}) == 4 * 5
    assert {(j.steps, j.prompts_per_step, j.algorithm.group_size) for j in jobs} == {(40, 32, 16)}
    assert {job.kl.direction for job in jobs} == {KLDirection.none}
    assert {tuple(job.reward.functions) for job in jobs} == {("derived", "chain")}
    (grpo,) = preflight(["experiment=gsm8k_grpo", "run_dir=new"])
    assert {job.evaluation.num_prompts for job in jobs} == {grpo.evaluation.num_prompts}


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_sweep_is_small(name: str) -> None:
    jobs = sweep(f"experiment={name}_smoke")
    assert 2 <= len(jobs) <= 5
    assert {(job.steps, job.prompts_per_step, job.algorithm.group_size) for job in jobs} == {
        (2, 2, 4)
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_TABLE])
def test_the_tabular_sweep_has_twenty_seeds(name: str) -> None:
    jobs = sweep(f"experiment={name}_tabular", "seed=19")
    assert len({identity_hash(job) for job in jobs}) == len(jobs)
    assert all(isinstance(job.model, TabularModelConfig) for job in jobs)
    grid = (ROOT / "conf" / "experiment" / f"{name}_tabular.yaml").read_text()
    assert "seed: range(20)" in grid


def test_the_seven_runs_of_the_seed() -> None:
    """unsloth-zoo's commits of 20 February 2025, in the order of experiments.md, section 0."""
    jobs = sweep("experiment=kl_detach_tabular", "seed=0", "kl.beta=0.04")
    found = [(j.ratio.detach, j.ratio.old.value, j.kl.estimator.value) for j in jobs]
    assert found == [
        (True, "current", "k3"),
        (False, "current", "k3"),
        (True, "current", "unsloth_full_reverse"),
        (True, "current", "unsloth_forward"),
        (False, "current", "unsloth_log_weighted"),
        (True, "one", "k3"),
        (False, "current", "unsloth_full_reverse"),
    ]


@pytest.mark.parametrize("name", ["algorithms", "algorithms_tabular", "inner_epochs", "adv_norm"])
def test_comparisons_without_a_kl_have_none_whatever_a_preset_says(name: str) -> None:
    assert {job.kl.direction for job in sweep(f"experiment={name}", "seed=0")} == {KLDirection.none}
