"""The check before training, on real tasks, rewards and processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_tokenizers import byte_level_tokenizer

from rlkit.models.special import completion_decoder
from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Task, build_task, config
from rlkit.tasks.check import check_golds, check_rewards

TOKENIZER = byte_level_tokenizer()
DECODE = completion_decoder(TOKENIZER, keep=False, ends=())


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
        check = check_rewards(task, pool, TOKENIZER, DECODE, num_examples=3)
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
        check_rewards(task, pool, TOKENIZER, DECODE)
    assert "\n" not in str(caught.value)


def test_a_recommended_reward_must_pay_for_gold_answers() -> None:
    task = build_task(config.EchoConfig())
    wrong_column = RewardSpec("answers", "tag_answer", 1.0, {"column": "prompt"})
    pool = RewardPool([wrong_column], RewardConfig(workers=1))
    with pool, pytest.raises(ValueError, match=r"answers must score every .*KeyError: 'prompt'"):
        check_rewards(task, pool, TOKENIZER, DECODE)
    # The gold answer of the raw task has no tags.
    raw_task = build_task(config.MaxOfNConfig())
    tag = RewardSpec("tag", "tag_answer")
    with (
        RewardPool([tag], RewardConfig(workers=1)) as pool,
        pytest.raises(ValueError, match=r"must tell answers apart, got 0 for gold"),
    ):
        check_rewards(raw_task, pool, TOKENIZER, DECODE)


def test_the_published_rewards_pass_too(tmp_path: Path) -> None:
    """The published soft format is 0 for gold answers of several lines: not an error."""
    names = ("xmlcount", "soft_format", "strict_format", "int", "correctness")
    pool = RewardPool([RewardSpec(n, n) for n in names], RewardConfig(workers=1))
    with pool:
        check = check_rewards(gsm8k(tmp_path), pool, TOKENIZER, DECODE)
    assert check.gold == [3.5]


def test_gold_that_earns_nothing_is_an_error() -> None:
    task = build_task(config.EchoConfig())
    broken = replace(task, gold_completion=lambda example: "no tags")
    pool = RewardPool(task.rewards, RewardConfig(workers=1))
    with pool, pytest.raises(ValueError, match=r"tag_answer must pay for gold answers, got 0 for"):
        check_rewards(broken, pool, TOKENIZER, DECODE)


def test_one_gold_answer_that_is_not_paid_does_not_stop_a_task(tmp_path: Path) -> None:
    """GSM8K holds negative answers; the published `int` pays for digits only."""
    rows = [{"question": f"{i}?", "answer": f"#### {a}"} for i, a in enumerate(("-2", "3"))]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "train.jsonl").write_text('{"question": "other", "answer": "1"}\n')
    task = build_task(config.GSM8KConfig(path=str(tmp_path)))
    with RewardPool(task.rewards, RewardConfig(workers=1)) as pool:
        check = check_rewards(task, pool, TOKENIZER, DECODE)
    assert check.gold == [4.0, 4.0] and check.notes == ()  # -2 is an integer
    only_digits = replace(task, rewards=(RewardSpec("int", "int"),))
    with RewardPool(only_digits.rewards, RewardConfig(workers=1)) as pool:
        check = check_rewards(only_digits, pool, TOKENIZER, DECODE)
    assert sorted(check.gold) == [0.0, 0.5]
    (note,) = check.notes
    assert "int must pay for gold answers, got 0 for held-out example" in note
    assert "1 others are paid, so the run goes on" in note


def test_tags_that_are_special_tokens_are_named_and_can_be_kept() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    task = build_task(config.EchoConfig())
    for keep in (False, True):
        decode = completion_decoder(tokenizer, keep=keep, ends=(tokenizer.eos_token_id,))
        with RewardPool(task.rewards, RewardConfig(workers=1)) as pool:
            if keep:
                assert check_rewards(task, pool, tokenizer, decode).gold == [1.0] * 4
                continue
            message = r"must pay for gold answers, got 0 .*; </answer>, <answer>: special tokens"
            with pytest.raises(ValueError, match=message):
                check_rewards(task, pool, tokenizer, decode)


def test_rows_that_a_reward_cannot_judge_are_named_before_training(tmp_path: Path) -> None:
    answers = ["3/4", "many", None, 0.5]
    rows = [{"q": f"{i}?", "a": a} for i, a in enumerate(answers)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cfg = config.DatasetConfig(path=str(tmp_path), columns={"prompt": "q", "answer": "a"})
    # Equal prompts on both sides would be left out of training.
    (tmp_path / "test.jsonl").write_text('{"q": "other", "a": 1}\n')
    train = build_task(cfg).train
    (line,) = check_golds(train, [RewardSpec("n", "numeric_match")])
    assert line.startswith("reward n cannot judge 2 of 4 train rows and gives them no value: row 1")
    assert "column answer holds no number, got 'many'" in line and "got None" in line
    (line,) = check_golds(train, [RewardSpec("n", "tag_answer")])
    assert "cannot judge 1 of 4" in line
    wrong = RewardSpec("n", "numeric_match", 1.0, {"column": "solution"})
    with pytest.raises(ValueError, match=r"n must be able to judge train rows, got none of 4: row"):
        check_golds(train, [wrong])
