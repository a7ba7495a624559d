"""F13: bad values on every leaf are refused in one line that names the key, before a run starts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.faults.bad_values import BAD, leaves, problems
from rlkit.config import ConfigError
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.tasks import build_task
from rlkit.tasks.config import ChainSumConfig

PER_LEAF = 3


def test_every_leaf_refuses_bad_values() -> None:
    """A part of the table for each leaf, another one for each; the harness tries all of it."""
    names = list(BAD)
    chosen = {
        leaf.key: tuple(names[(i * PER_LEAF + k) % len(names)] for k in range(PER_LEAF))
        for i, leaf in enumerate(leaves())
    }
    tried, wrong = problems({**chosen, "": tuple(names[:PER_LEAF])})
    assert wrong == []
    assert tried >= 500


# What ended in a traceback or in a start without an end, or was taken, and what is said now.
REFUSED = {
    "memory.torch_threads=100000": "memory.torch_threads must be in [0, 1024], got 100000",
    "+reward.functions.x.fn=5": "reward.functions.x.fn must be text, got 5",
    "+reward.functions.x={fn: tag_answer, weight: true}": (
        "reward.functions.x.weight must be a number, got True"
    ),
    "+reward.functions.x={fn: tag_answer, weight: 1e30}": (
        "reward.functions.x.weight must be in [-1e+06, 1e+06], got 1e+30"
    ),
    "reward.functions=1": "reward.functions must be a mapping, got 1",
    "model.lora.rank=1000000000000000000000000000000": (
        "model.lora.rank must be in [1, 8192], got 1000000000000000000000000000000"
    ),
    "stop=${oc.env:HOME}": "stop must be a group of options, got ${oc.env:HOME}",
    "prompts_per_step=50000": (
        "prompts_per_step * algorithm.group_size must be <= 1000000, got 50000 * 100"
    ),
    "prompts_per_step=1000000": "prompts_per_step",
    "algorithm.group_size=1000000000": "prompts_per_step * algorithm.group_size must be <= 1000000",
    "evaluation.samples_per_prompt=100000": (
        "evaluation.num_prompts * evaluation.samples_per_prompt must be <= 1000000"
    ),
    "task.eval_size=1000000000": "task.eval_size must be in [1, 20000], got 1000000000",
    "~run_dir": "run_dir must be given, got nothing",
    "optim.learning_rate=inf": "optim.learning_rate must be in [0, 10], got inf",
    "optim.learning_rate=1e30": "optim.learning_rate must be in [0, 10], got 1e+30",
    "model.allow_remote_code=-1": "model.allow_remote_code must be true or false, got -1",
    "model.allow_remote_code=1": "model.allow_remote_code must be true or false, got 1",
    "model.allow_remote_code=yes": "model.allow_remote_code must be true or false, got yes",
    "tracker.plot='true'": "tracker.plot must be true or false, got true",
    "model.cache_dir=''": ("model.cache_dir must be null or a text with something in it, got ''"),
    "reward.workers=100000": "reward.workers must be in [1, 256], got 100000",
    "reward.timeout_s=1e30": "reward.timeout_s must be in [0, 1e+06], got 1e+30",
    "optim=5": "optim must be the name of an option, got 5",
    "steps=[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]": "steps must be nested at most 16 deep",
}


@pytest.mark.parametrize("word", REFUSED)
def test_the_line_says_key_rule_and_value(word: str) -> None:
    register()
    group_size = ["algorithm.group_size=100"] if word == "prompts_per_step=50000" else []
    with pytest.raises(ConfigError) as caught:
        preflight(["run_dir=unused", *group_size, word])
    assert str(caught.value).startswith(REFUSED[word])


@pytest.mark.parametrize("value", ["-1", "2", "1", "0", "'true'", '"no"'])
def test_a_boolean_in_a_file_of_ones_own_is_true_or_false(value: str, tmp_path: Path) -> None:
    """OmegaConf would take each of these, when it merges the file."""
    register()
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment/mine.yaml"
    words = ["--config-dir", str(tmp_path), "experiment=mine", "run_dir=unused"]
    text = "# @package _global_\nmodel:\n  allow_remote_code: "
    file.write_text(f"{text}{value}\n")
    rule = r"model\.allow_remote_code must be true or false, got \S+ in experiment/mine"
    with pytest.raises(ConfigError, match=f"^{rule}$"):
        preflight(words)
    for right in ("true", "false", "yes", "off"):  # YAML 1.1 has four words for each
        file.write_text(f"{text}{right}\n")
        (config,) = preflight(words)
        assert config.model.allow_remote_code is (right in ("true", "yes"))


@pytest.mark.parametrize(
    "key",
    [
        "model.vocabulary",
        "model.reference_seed",
        "task.num_prompts",
        "task.seed",
        "generator.noise_seed",
    ],
)
def test_tables_refuse_what_no_computer_counts(key: str) -> None:
    register()
    tables = ("model=tabular", "task=tabular", "generator=tabular")
    with pytest.raises(ConfigError, match=rf"{key} must be in \[.*\], got 1{'0' * 30}"):
        preflight(["run_dir=unused", *tables, f"{key}=1{'0' * 30}"])


@pytest.mark.slow
def test_the_most_held_out_problems_take_seconds() -> None:
    """A task with few different problems draws longest: it looks for others in vain."""
    start = time.process_time()
    task = build_task(ChainSumConfig(eval_size=20_000))
    assert 1 <= (task.eval.size or 0) < 155
    assert time.process_time() - start < 30.0


def test_a_long_word_is_cut_in_the_line() -> None:
    register()
    with pytest.raises(ConfigError) as caught:
        preflight(["run_dir=unused", "steps=" + "x" * 100_000])
    assert len(str(caught.value)) < 300
    assert str(caught.value).startswith("steps: Value 'xxx")
