"""Every option of every group composes and loads; every mistake is one clear line before job 0."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from rlkit.algorithms.ppo import PPOConfig
from rlkit.assembly.identity import identity, identity_hash
from rlkit.config import Config, ConfigError, algorithm_name, flatten, load
from rlkit.generation import VLLMGeneratorConfig, VLLMServerConfig
from rlkit.generation.base import GeneratorConfig
from rlkit.generation.vllm.config import Products, Quantization
from rlkit.launch.composing import register
from rlkit.launch.preflight import plan, preflight
from rlkit.launch.sweep_folder import job_id, sweep_name
from rlkit.models import LoRAConfig, ModelConfig, QuantConfig, QuantKind, TuningKind
from rlkit.training.memory_config import MemoryConfig

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "__pycache__")
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register()
    monkeypatch.chdir(tmp_path)
    yield


def compose_config(*overrides: str) -> Config:
    (config,) = preflight(["run_dir=new", *overrides])
    return config


# Options that need a key of the user's (a path, a column): what the user would add.
COMPANIONS = {
    ("task", "gsm8k"): ["task.path=somewhere"],
    ("task", "dataset"): ["task.path=somewhere"],
}


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=lambda x: x)
def test_every_option_composes_and_loads(group: str, name: str) -> None:
    compose_config(f"{group}={name}", *COMPANIONS.get((group, name), []))


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "algorithm"])
def test_every_algorithm_is_called_by_its_own_name(name: str) -> None:
    """Presets that extend another one say their own name, which is no part of a run's identity."""
    config = compose_config(f"algorithm={name}")
    assert algorithm_name(config) == name
    unnamed = replace(config, algorithm=replace(config.algorithm, preset=""))
    assert identity_hash(config) == identity_hash(unnamed) and job_id(config) == job_id(unnamed)


def test_only_sweeps_end_runs_that_earn_nothing_by_default() -> None:
    assert compose_config().stop.no_signal_steps is None
    jobs = plan(["-m", "seed=0,1"]).jobs
    assert [job.config.stop.no_signal_steps for job in jobs] == [20, 20]
    (job, *_) = plan(["-m", "seed=0,1", "stop.no_signal_steps=0"]).jobs
    assert job.config.stop.no_signal_steps == 0
    assert job.id == jobs[0].id, "when a job gives up is no part of its identity"


def test_defaults_are_those_of_the_seed() -> None:
    config = flatten(compose_config())
    assert config["kl.beta"] == 0.04
    assert config["kl.estimator"] == "k3"
    assert config["ratio.detach"] is True
    assert config["algorithm.group_size"] == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=3", "sed is not an option (did you mean seed?)"),
        ("+sed=3", "sed is not an option (did you mean seed?)"),
        ("++sed=3", "sed is not an option (did you mean seed?)"),
        (
            "optim.learnign_rate=1",
            "optim.learnign_rate is not an option (did you mean optim.learning_rate?)",
        ),
        ("+optim.lr=1", "optim.lr is not an option"),
        ("algorithm=grppo", "algorithm must be one of"),
        ("algorithm=grppo", "got grppo (did you mean grpo?)"),
        ("steps=0", "steps must be >= 1, got 0"),
        ("steps=many", "steps"),
        ("seed=-1", "seed must be in [0, 2**31), got -1"),
        ("prompts_per_step=0", "prompts_per_step must be >= 1, got 0"),
        ("optim.learning_rate=-1", "optim.learning_rate must be > 0, got -1"),
        ("optim.learning_rate=nan", "optim.learning_rate must be > 0, got nan"),
        ("optim.minibatches=9", "optim.minibatches must be <= prompts_per_step (6)"),
        ("resume=maybe", "never, auto, must"),
        ("device=tpu", "auto, cpu, cuda"),
        ("evaluation.num_prompts=0", "evaluation.num_prompts must be >= 1, got 0"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last must be >= 2"),
        ("memory.tokens_per_microbatch=-1", "memory.tokens_per_microbatch must be >= 0"),
        ("model.lora.rank=0", "model.lora.rank must be >= 1, got 0"),
        ("generator.sampling.temperature=0", "generator.sampling.temperature must be"),
        ("generator.sampling.top_p=1.5", "generator.sampling.top_p must be in (0, 1], got 1.5"),
        ("kl.beta=-1", "kl.beta"),
        ("algorithm.group_size=0", "algorithm.group_size must be >= 1, got 0"),
        ("reward.timeout_s=0", "reward.timeout_s must be > 0"),
        ("a b=3", "a b=3"),
    ],
)
def test_mistakes_are_one_line_that_names_key_and_rule(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_in_8_bits_is_that_of_the_sampler_too() -> None:
    config = compose_config("memory.quant.kind=fp8")
    rule = "with memory.quant.kind=fp8"
    refused: list[tuple[GeneratorConfig, str]] = [
        (VLLMServerConfig(), f"generator must be auto, vllm or hf {rule}, got vllm_server"),
        (
            VLLMGeneratorConfig(quantization=Quantization.nf4),
            f"generator.quantization must be none {rule}, got nf4",
        ),
    ]
    for generator, message in refused:
        with pytest.raises(ConfigError) as caught:
            replace(config, generator=generator)
        assert str(caught.value) == message


def test_all_weights_go_with_nothing_that_needs_an_adapter() -> None:
    config = compose_config("model.tuning=full")
    nf4 = MemoryConfig(quant=QuantConfig(kind=QuantKind.nf4))
    sampling_nf4 = VLLMGeneratorConfig(quantization=Quantization.nf4)
    rule = "with model.tuning=full"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"memory": nf4}, f"memory.quant.kind must be none {rule}, got nf4"),
        ({"algorithm": PPOConfig()}, f"algorithm must be one without a critic {rule}, got ppo"),
        (
            {"generator": VLLMServerConfig()},
            f"generator must be auto, vllm or hf {rule}, got vllm_server",
        ),
        ({"generator": sampling_nf4}, f"generator.quantization must be none {rule}, got nf4"),
        (
            {"generator": VLLMGeneratorConfig(lora=Products.punica)},
            f"generator.lora must be auto {rule}, got punica",
        ),
    ]
    for changes, message in refused:
        with pytest.raises(ConfigError) as caught:
            replace(config, **changes)
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=f"model.lora must be left as it is {rule}"):
        ModelConfig(tuning=TuningKind.full, lora=LoRAConfig(rank=8))


def test_a_mistake_anywhere_in_a_sweep_is_found_before_job_0() -> None:
    with pytest.raises(ConfigError, match=r"sweep not started; job \[.*steps=0.*\]: steps must be"):
        preflight(["-m", "seed=0,1", "steps=3,0"])


def test_a_sweep_is_the_product_of_its_values() -> None:
    jobs = preflight(["-m", "algorithm.group_size=4,8", "seed=0,1", "kl=none"])
    found = [(job.algorithm.group_size, job.seed, flatten(job)["kl.direction"]) for job in jobs]
    assert found == [(4, 0, "none"), (4, 1, "none"), (8, 0, "none"), (8, 1, "none")]


def test_group_sweeps_load_the_right_classes() -> None:
    jobs = preflight(["-m", "kl=glob(reverse_k*)"])
    assert len(jobs) >= 3
    assert len({identity_hash(job) for job in jobs}) == len(jobs)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "log.txt").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir must be a new or empty folder .* got used"):
        preflight(["run_dir=used"])
    with pytest.raises(ConfigError, match=r"run_dir must be a run with checkpoints"):
        preflight(["run_dir=used", "resume=must"])
    assert preflight(["run_dir=used", "resume=auto"])


def test_identity_depends_on_numbers_not_on_places() -> None:
    base = identity_hash(compose_config())
    assert identity_hash(compose_config("run_dir=other")) == base
    assert identity_hash(compose_config("steps=99")) == base
    assert identity_hash(compose_config("kl.beta=0.05")) != base
    assert identity_hash(compose_config("seed=1")) != base


def test_options_that_old_runs_did_not_have_leave_their_identity_alone() -> None:
    newer = {"model.adapter", "model.adapter_use", "model.rope_length"}
    assert not newer & identity(compose_config()).keys()
    changed = identity(compose_config("model.adapter=sft", "model.adapter_use=merge"))
    assert (changed["model.adapter"], changed["model.adapter_use"]) == ("sft", "merge")
    assert identity(compose_config("model.rope_length=64"))["model.rope_length"] == 64


def test_own_config_folder(tmp_path: Path) -> None:
    experiment = tmp_path / "my" / "experiment"
    experiment.mkdir(parents=True)
    (experiment / "mine.yaml").write_text("# @package _global_\nseed: 7\nkl:\n  beta: 0.5\n")
    (config,) = preflight(["--config-dir", "my", "experiment=mine"])
    assert (config.seed, config.kl.beta) == (7, 0.5)


@pytest.mark.parametrize(
    "name", ["a=1,b=2", "x=/etc/passwd", "../../up", "a\0b", "é" * 300, "-m", ""]
)
def test_sweep_folders_are_one_safe_component(name: str) -> None:
    folder = sweep_name(name, [])
    assert 0 < len(folder.encode()) <= 120
    assert folder not in (".", "..") and "/" not in folder and "\0" not in folder


def test_bad_input_ends_with_code_2_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlkit", "steps=0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "rlkit: steps must be >= 1, got 0\n"
    assert list(tmp_path.iterdir()) == []


def test_every_leaf_of_the_root_is_in_the_composed_file() -> None:
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        composed = compose("config", overrides=["run_dir=x"])
    assert set(flatten(load(composed))) == set(flatten(compose_config()))
