"""The check before training, on real tasks, rewards and processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_tokenizers import byte_level_tokenizer

from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Task, build_task, config
from rlkit.tasks.check import check_rewards

TOKENIZER = byte_level_tokenizer()


def gsm8k(folder: Path) -> Task:
    (folder / "train.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (folder / "test.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
    return build_task(config.GSM8KConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("cfg", "full_marks"),
    [
        (config.EchoConfig(), 1.0),
        (config.RevWordsConfig(), 1.0),
        (config.MaxOfNConfig(), 1.0),
        (config.ChainSumConfig(), 1.0),
        (config.CompareDecimalsConfig(), 1.0),
        (None, 0.5 + 0.5 + 0.5 + 0.5 + 2.0),  # GSM8K: tags, two formats, a number, the right one
    ],
)
def test_gold_answers_earn_full_marks(
    cfg: config.TaskConfig | None, full_marks: float, tmp_path: Path
) -> None:
    task = gsm8k(tmp_path) if cfg is None else build_task(cfg)
    with RewardPool(task.rewards, RewardConfig(workers=1)) as pool:
        check = check_rewards(task, pool, TOKENIZER, num_examples=3)
    assert check.gold == [full_marks] * min(3, task.eval.size or 0)
    assert max(check.other) < full_marks / 2


BAD = {
    "wrong length": ("return [1.0]", "reward.functions.mine must score every completion, got: ret"),
    "raises": ("raise KeyError('answr')", r"got: KeyError: 'answr' \(f.py:2\)"),
    "string": ("return ['1'] * len(group)", r"got: returned '1' \(str\) for a sample"),
    "hangs": ("import time; time.sleep(100)", r"got: still busy after 1.0 s"),
    "constant": ("return [1.0] * len(group)", "must tell answers apart, got 1 for gold and wrong"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rewards_are_found_before_training(case: str, tmp_path: Path) -> None:
    body, message = BAD[case]
    (tmp_path / "f.py").write_text(f"def f(group):\n    {body}\n")
    specs = [RewardSpec("mine", f"{tmp_path / 'f.py'}:f")]
    pool = RewardPool(specs, RewardConfig(workers=1, timeout_s=1.0))
    task = build_task(config.EchoConfig())
    with pool, pytest.raises(ValueError, match=message) as caught:
        check_rewards(task, pool, TOKENIZER)
    assert "\n" not in str(caught.value)


def test_a_recommended_reward_must_pay_for_gold_answers() -> None:
    task = build_task(config.EchoConfig())
    wrong_column = RewardSpec("answers", "tag_answer", 1.0, {"column": "prompt"})
    pool = RewardPool([wrong_column], RewardConfig(workers=1))
    with pool, pytest.raises(ValueError, match=r"answers must score every .*KeyError: 'prompt'"):
        check_rewards(task, pool, TOKENIZER)
    # The gold answer of the raw task has no tags.
    raw_task = build_task(config.MaxOfNConfig())
    tag = RewardSpec("tag", "tag_answer")
    with (
        RewardPool([tag], RewardConfig(workers=1)) as pool,
        pytest.raises(ValueError, match=r"must tell answers apart, got 0 for gold"),
    ):
        check_rewards(raw_task, pool, TOKENIZER)


def test_the_published_rewards_pass_too(tmp_path: Path) -> None:
    """The published soft format is 0 for gold answers of several lines: not an error."""
    names = ("xmlcount", "soft_format", "strict_format", "int", "correctness")
    pool = RewardPool([RewardSpec(n, n) for n in names], RewardConfig(workers=1))
    with pool:
        check = check_rewards(gsm8k(tmp_path), pool, TOKENIZER)
    assert check.gold == [3.5]


def test_gold_that_earns_nothing_is_an_error() -> None:
    task = build_task(config.EchoConfig())
    broken = replace(task, gold_completion=lambda example: "no tags")
    pool = RewardPool(task.rewards, RewardConfig(workers=1))
    with pool, pytest.raises(ValueError, match=r"tag_answer must pay for gold answers, got 0 for"):
        check_rewards(broken, pool, TOKENIZER)
