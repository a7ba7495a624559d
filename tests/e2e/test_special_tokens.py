"""Tags and end-of-turn tokens that are special tokens, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_process import RunCLI
from tiny_models import tiny_config
from tiny_tokenizers import CHATML, byte_level_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END = 3
"""The id of `<|im_end|>`."""


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, *, end_logit: float, eos: int) -> Path:
    """Write a model that knows no context: the logit of `<|im_end|>` is given, all others are 0."""
    size = len(tokenizer)
    config = tiny_config(
        "llama",
        vocab_size=size,
        num_hidden_layers=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight[END] = end_logit / 32  # the last norm gives 32 ones
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A base model with a ChatML template: its only listed end is another token."""
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = "<|bos|>"
    return save(tmp_path / "base", tokenizer, end_logit=5.7, eos=1)


@pytest.fixture
def gsm8k(tmp_path: Path) -> list[str]:
    """Overrides of a run on a folder like GSM8K's, with a negative gold answer in front."""
    rows = [
        json.dumps({"question": f"What is {i} - 3?", "answer": f"So {i} - 3. #### {i - 3}"})
        for i in range(8)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(rows[4:]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(rows[:4]) + "\n")
    return ["task=gsm8k", f"task.path={folder}", "task.max_prompt_length=600"]


def options(small: list[str], model: Path) -> list[str]:
    kept = [o for o in small if not o.startswith(("model.source", "task=", "+reward"))]
    return [*kept, f"model.source={model}", "steps=1", "task.max_completion_length=8"]


def lengths(run: Path) -> float:
    line = (run / "metrics.jsonl").read_text().splitlines()[0]
    return float(json.loads(line)["completions/mean_length"])


def test_tags_that_vanish_are_named_by_check_and_run_and_can_be_kept(
    rlkit: RunCLI, small: list[str], tmp_path: Path, gsm8k: list[str]
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    model = save(tmp_path / "tags", tokenizer, end_logit=0.0, eos=END)
    own = [*options(small, model), *gsm8k]
    lost = (
        "must pay for gold answers, got 0 for held-out example 0 of task gsm8k; </answer>, "
        "<answer>: special tokens of the tokenizer, which rewards do not see "
        "(reward.special_tokens=keep shows them)"
    )
    for command in (["check"], ["run_dir=run"]):
        result = rlkit(*command, *own)
        assert result.returncode == 2
        assert lost in result.stderr
    assert not (tmp_path / "run").exists()
    for command in (["check"], ["run_dir=run"]):
        result = rlkit(*command, *own, "reward.special_tokens=keep")
        assert result.returncode == 0, result.stderr
        assert "do not see" not in result.stdout


def test_check_names_tags_even_where_no_gold_answer_is_known(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    model = save(tmp_path / "tags", tokenizer, end_logit=0.0, eos=END)
    result = rlkit("check", *options(small, model), "task=max_of_n", "task.max_prompt_length=300")
    assert result.returncode == 0, result.stderr
    assert "special tokens that rewards do not see: </answer>, <answer>" in result.stdout


def test_a_negative_gold_answer_does_not_stop_gsm8k(
    rlkit: RunCLI, small: list[str], base_model: Path, gsm8k: list[str]
) -> None:
    own = [*options(small, base_model), *gsm8k]
    # `int` of the published rewards pays for digits alone: -3, -2 and -1 earn nothing there.
    result = rlkit("check", *own, "reward=gsm8k_seed")
    assert result.returncode == 0, result.stderr
    result = rlkit("run_dir=run", *own, "task.seed=51")
    assert result.returncode == 0, result.stderr


def test_the_templates_end_of_turn_ends_a_completion_of_a_base_model(
    rlkit: RunCLI, small: list[str], tmp_path: Path, base_model: Path, gsm8k: list[str]
) -> None:
    own = [*options(small, base_model), *gsm8k]
    result = rlkit("run_dir=run", *own)
    assert result.returncode == 0, result.stderr
    assert "stop tokens: <|bos|> (1), <|im_end|> (3)" in result.stdout
    assert "stop tokens: <|bos|> (1), <|im_end|> (3)" in rlkit("check", *own).stdout
    # With p = 1/2 a token ends 8 completions after 2 tokens on average; else all have 8.
    assert lengths(tmp_path / "run") < 5


def test_a_stop_string_that_is_a_special_token_stops_by_id(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer(chat_template=CHATML.replace("<|im_end|>", "."))
    tokenizer.eos_token = "<|bos|>"
    model = save(tmp_path / "plain", tokenizer, end_logit=5.7, eos=1)
    rows = "".join(json.dumps({"q": f"Say {i}."}) + "\n" for i in range(8))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "own.py").write_text(
        "def score(group):\n    return [float(len(group))] * len(group)\n"
    )
    own = [
        *options(small, model),
        *("task=dataset", "task.path=rows.jsonl", "task.eval_fraction=0.5"),
        *("+task.columns.prompt=q", "+reward.functions.mine.fn=own.py:score"),
    ]
    result = rlkit("run_dir=without", *own)
    assert result.returncode == 0, result.stderr
    assert lengths(tmp_path / "without") == 8
    stop = 'task.stop=["<|im_end|>"]'
    result = rlkit("run_dir=with", *own, stop)
    assert result.returncode == 0, result.stderr
    assert "stop strings that are special tokens: <|im_end|> (3)" in result.stdout
    assert lengths(tmp_path / "with") < 5
    assert "stop tokens: <|bos|> (1), <|im_end|> (3)" in rlkit("check", *own, stop).stdout
    mixed = rlkit("check", *own, 'task.stop=["a<|im_end|>"]')
    assert mixed.returncode == 2
    assert "task.stop must hold ordinary text or one special token alone" in mixed.stderr
