"""`model=tabular` through the production job: learning, the seed's dead run, resume, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlkit.config import Config, ConfigError
from rlkit.launch.composing import register
from rlkit.launch.job import run_job
from rlkit.launch.preflight import preflight
from rlkit.launch.prepare import prepare
from rlkit.tracking import EvalRecord, comparable, read_evals
from rlkit.tracking.files import read_lines


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def composed(name: str, *overrides: str) -> Config:
    (config,) = preflight(["model=tabular", f"run_dir={name}", *overrides])
    return config


def train(name: str, *overrides: str) -> list[EvalRecord]:
    config = composed(name, *overrides)
    assert run_job(config, run_dir=Path(config.run_dir)) == 0
    return read_evals(Path(name))


def test_it_learns_and_the_trackers_know() -> None:
    before, after = train("run", "steps=60", "evaluation.every=0", "kl=none")
    assert before.metrics["kl"] == 0.0
    assert after.interval.mean > 0.7
    assert after.metrics["kl"] > 0.5
    assert after.metrics["samples"] == 60 * 64
    assert after.interval.mean == pytest.approx(after.metrics["reward"])
    assert [line["step"] for line in read_lines(Path("run/metrics.jsonl"))][-2:] == [50, 59]


@pytest.mark.parametrize("beta", [0.0, 0.04, 2.0])
def test_without_detach_nothing_ever_moves(beta: float) -> None:
    """Experiments, 0a: reward flat, KL exactly 0, gradient norm exactly 0, for every beta."""
    arm = "algorithm=unsloth_2025_no_detach"
    before, after = train("run", arm, f"kl.beta={beta}", "steps=15", "evaluation.every=0")
    assert after.values == before.values
    assert after.metrics["kl"] == 0.0
    assert [line["grad_norm"] for line in read_lines(Path("run/metrics.jsonl"))] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["log_weighted", "full_no_detach"])
def test_the_unplotted_runs_without_a_ratio_do_not_move_either(name: str) -> None:
    """Their KL terms start at a stationary point, and nothing else has a gradient."""
    arm = f"algorithm=unsloth_2025_{name}"
    before, after = train("run", arm, "kl.beta=0.4", "steps=5", "evaluation.every=0")
    assert after.values == before.values and after.metrics["kl"] == 0.0


@pytest.mark.parametrize(
    "algorithm", ["grpo", "rloo", "ppo_tabular", "online_dpo", "reinforce", "bnpo"]
)
def test_every_kind_of_algorithm_runs(algorithm: str) -> None:
    before, after = train("run", f"algorithm={algorithm}", "steps=40", "evaluation.every=0")
    assert after.interval.mean > before.interval.mean + 0.2


def test_resume_is_bitwise() -> None:
    options = ["steps=12", "checkpoint.every=3", "tracker.metrics_every=1", "algorithm=ppo_tabular"]
    train("whole", *options)
    train("parts", *options, "steps=6")
    train("parts", *options, "resume=auto")
    whole, parts = (
        [comparable(line) for line in read_lines(Path(name) / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert len(whole) == 12 and whole == parts
    assert read_evals(Path("whole"))[-1].values == read_evals(Path("parts"))[-1].values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=echo"], "task must be tabular with model=tabular, got echo"),
        (
            ["generator=vllm_server"],
            "generator must be tabular with model=tabular, got vllm_server",
        ),
        (["reward=exact"], "reward.functions must be empty with model=tabular, got"),
        (["evaluation.num_prompts=8"], "evaluation.num_prompts has no effect with model=tabular"),
        (["task.max_completion_length=20"], "at most 20000 completions with model.vocabulary=4"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(composed("run", *overrides), say=print)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=4", "model.lora has no effect with model=tabular"),
        ("task.eval_size=4", "task.eval_size has no effect with task=tabular, got 4"),
        ("task.densities=[]", r"task.densities must be numbers in \(0, 1\), got \[\]"),
        ("generator.sampling.top_k=2", "generator.sampling.top_k must be 0 with"),
        ("model.vocabulary=1", "model.vocabulary must be >= 2, got 1"),
    ],
)
def test_options_without_effect_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("run", override)
