"""A configuration of verl as options of rlkit, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.cli.convert_config import run
from rlkit.config import Config, flatten
from rlkit.convert.read import Origin, origin_of, read
from rlkit.convert.verl import convert
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
MODEL = "actor_rollout_ref.model."

# The script of verl's own examples for GRPO on GSM8K, shortened.
SCRIPT = """\
set -x
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    data.train_files=$HOME/data/gsm8k/train.parquet \\
    data.val_files=$HOME/data/gsm8k/test.parquet \\
    data.train_batch_size=64 \\
    data.max_prompt_length=512 \\
    data.max_response_length=1024 \\
    data.filter_overlong_prompts=True \\
    actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B-Instruct \\
    actor_rollout_ref.actor.optim.lr=3e-6 \\
    actor_rollout_ref.model.lora_rank=64 \\
    actor_rollout_ref.model.lora_alpha=32 \\
    actor_rollout_ref.actor.ppo_mini_batch_size=16 \\
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=40 \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=0.001 \\
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \\
    actor_rollout_ref.actor.entropy_coeff=0 \\
    actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \\
    actor_rollout_ref.rollout.n=5 \\
    algorithm.use_kl_in_reward=False \\
    trainer.logger='["console","wandb"]' \\
    trainer.project_name=verl_grpo \\
    trainer.n_gpus_per_node=1 \\
    trainer.save_freq=20 \\
    trainer.test_freq=5 \\
    trainer.total_epochs=15 $@
"""


def composed(values: dict[str, object]) -> Config:
    """Return the configuration that the options of a conversion stand for."""
    register()
    (config,) = preflight(convert({f"{MODEL}lora_rank": 8, **values}).words)
    return config


def test_a_script_of_verl(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT)
    values, unread = read(tmp_path / "run.sh")
    assert unread == [] and len(values) == 27 and origin_of(values) is Origin.verl
    found = convert(values)
    lost = {entry.key: entry.reason for entry in found.lost}
    assert lost.keys() == {
        f"{ACTOR}ppo_micro_batch_size_per_gpu",
        f"{ROLLOUT}gpu_memory_utilization",
        "trainer.total_epochs",
    }
    config = composed(values)
    assert (config.prompts_per_step, config.algorithm.group_size) == (64, 5)
    assert (config.optim.minibatches, config.optim.learning_rate) == (4, 3e-6)
    assert (config.kl.estimator, config.kl.placement, config.kl.beta) == ("k3", "loss", 0.001)
    assert (config.ratio.dual, config.ratio.clip_high) == (3.0, 0.2)
    assert flatten(config)["algorithm.aggregation"] == "token_mean"
    assert flatten(config)["algorithm.advantage.eps"] == 1e-6
    assert (config.task.max_prompt_length, config.task.max_completion_length) == (512, 1024)
    assert (config.task.overlong_prompts, config.task.name) == ("drop", "dataset")
    assert (config.model.lora.rank, config.model.lora.alpha) == (64, 32.0)
    assert (config.checkpoint.every, config.evaluation.every) == (20, 5)
    assert flatten(config)["tracker.project"] == "verl_grpo"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"algorithm.adv_estimator": "gae"}, ["algorithm=ppo", "algorithm.lam=1.0"]),
        ({"algorithm.adv_estimator": "rloo"}, ["algorithm=rloo_token"]),
        ({"algorithm.adv_estimator": "reinforce_plus_plus"}, ["algorithm=reinforce_pp"]),
        (
            {"algorithm.adv_estimator": "grpo", "algorithm.norm_adv_by_std_in_grpo": False},
            ["algorithm.advantage.scale=none"],
        ),
        ({f"{ACTOR}policy_loss.loss_mode": "gspo"}, ["ratio=gspo", "ratio.clip_low=0.2"]),
        ({f"{ACTOR}policy_loss.loss_mode": "geo_mean"}, ["ratio=gmpo"]),
        ({f"{ACTOR}policy_loss.loss_mode": "sapo"}, ["ratio=sapo", "ratio.tau_negative=1.05"]),
        (
            {f"{ACTOR}policy_loss.loss_mode": "cispo", f"{ACTOR}clip_ratio_high": 4.0},
            ["ratio=cispo", "ratio.clip_high=4.0"],
        ),
        ({f"{ACTOR}clip_ratio_c": 1e9}, ["ratio=token"]),
        (
            {f"{ACTOR}loss_agg_mode": "seq-mean-token-sum-norm"},
            ["algorithm.aggregation=constant_length"],
        ),
        ({f"{ACTOR}use_kl_loss": True, f"{ACTOR}kl_loss_type": "k3+"}, ["kl=reverse_k3_straight"]),
        (
            {f"{ACTOR}use_kl_loss": True, f"{ACTOR}kl_loss_type": "k1+"},
            ["kl=reverse_k1", "kl.gradient=straight_through"],
        ),
        ({f"{ACTOR}use_kl_loss": True, f"{ACTOR}kl_loss_type": "mse"}, ["kl=reverse_k2"]),
        ({"algorithm.use_kl_in_reward": True}, ["kl=reverse_k1_reward", "kl.beta=0.001"]),
        (
            {"algorithm.rollout_correction.rollout_is": "token"},
            ["correction=token_tis", "correction.high=2.0"],
        ),
        (
            {
                "algorithm.rollout_correction.rollout_is": "token",
                "algorithm.rollout_correction.rollout_is_threshold": "0.5_5.0",
            },
            ["correction=token_mask", "correction.low=0.5", "correction.high=5.0"],
        ),
        ({"algorithm.filter_groups.enable": True}, ["algorithm.group_filter=resample"]),
        ({"data.truncation": "left"}, ["task.overlong_prompts=truncate_left"]),
        ({"trainer.nnodes": 2, "trainer.n_gpus_per_node": 4}, ["gpus=8"]),
        ({f"{MODEL}lora_rank": 0}, ["model.tuning=full"]),
        ({f"{ROLLOUT}top_k": -1}, ["generator.sampling.top_k=0"]),
    ],
)
def test_single_keys(values: dict[str, object], words: list[str]) -> None:
    grpo = {"algorithm.adv_estimator": "grpo", f"{ROLLOUT}n": 4, f"{MODEL}lora_rank": 8}
    found = convert({**grpo, **values})
    assert set(words) <= set(found.words)
    assert not found.lost
    register()
    assert preflight(found.words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.adv_estimator", "remax"),
        (f"{ACTOR}policy_loss.loss_mode", "clip_cov"),
        (f"{ACTOR}loss_agg_mode", "token-sum"),
        (f"{ROLLOUT}name", "sglang"),
        ("data.truncation", "middle"),
        (f"{ACTOR}optim.total_training_steps", 7),
        ("nowhere.at_all", 1),
    ],
)
def test_values_without_a_counterpart_are_listed(key: str, value: object) -> None:
    assert key in [entry.key for entry in convert({key: value}).lost]


def test_two_kl_terms_become_one_and_the_other_is_listed() -> None:
    found = convert({f"{ACTOR}use_kl_loss": True, "algorithm.use_kl_in_reward": True})
    assert "kl=reverse_k3" in found.words
    assert [entry.key for entry in found.lost] == ["algorithm.use_kl_in_reward"]


def test_every_key_of_a_yaml_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verl.yaml"
    file.write_text(
        "actor_rollout_ref:\n  actor:\n    _target_: x.Y\n    ppo_epochs: 2\n"
        "    freeze_vision_tower: true\n"
        "  model: {path: Qwen/Qwen2.5-0.5B, lora_rank: 8}\n  rollout: {n: 4, top_k: null}\n"
        "algorithm: {adv_estimator: grpo}\n"
    )
    assert run([str(file)]) == 0
    printed = capsys.readouterr().out
    assert "optim.inner_epochs=2 \\\n" in printed
    assert "#     actor_rollout_ref.actor._target_, actor_rollout_ref.rollout.top_k" in printed
    assert "#     actor_rollout_ref.actor.freeze_vision_tower=True" in printed


def test_the_experiment_that_is_printed_composes_to_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").write_text(SCRIPT)
    assert run(["run.sh", "yaml=true"]) == 0
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "my/experiment/theirs.yaml").write_text(capsys.readouterr().out)
    register()
    (config,) = preflight(["--config-dir", "my", "experiment=theirs", "run_dir=runs/x"])
    (other,) = preflight([*convert(read(tmp_path / "run.sh")[0]).words, "run_dir=runs/x"])
    assert config == other


def test_options_that_do_not_fit_together_end_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {train_batch_size: 4}\ntrainer: {n_gpus_per_node: 8}\n")
    assert run([str(file)]) == 1
    assert "these options do not fit together yet: gpus must be in" in capsys.readouterr().err
