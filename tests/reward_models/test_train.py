"""A reward model of two layers learns a known rule from pairs, on a base that stays frozen."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import PreTrainedModel

from rlkit.models.config import LoRAConfig
from rlkit.policy.lora import attach
from rlkit.reward_models.adapter import (
    SharedBase,
    load_reward_adapter,
    row_maker,
    save_reward_adapter,
)
from rlkit.reward_models.pairs import PreferencePair, read_pairs
from rlkit.reward_models.train import RewardTraining, bradley_terry_loss, train_reward

KEY = "reward.functions.rm.options"


def base_of(*, seed_shift: float = 0.0, rank: int = 8) -> SharedBase:
    tokenizer = byte_level_tokenizer()
    model: PreTrainedModel = tiny_model(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), hidden_size=64
    )
    embedding: Any = model.get_input_embeddings()
    embedding.weight.data += seed_shift
    lora = attach(model, LoRAConfig(rank=rank, alpha=2.0 * rank), dtype=torch.float32)
    return SharedBase(model=model, lora=lora, tokenizer=tokenizer, location="tiny")


def gold_pairs(count: int) -> list[PreferencePair]:
    """The better answer ends in an exclamation mark; lengths say nothing."""
    draw = random.Random(7)
    pairs = []
    for i in range(count):
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 9))) for _ in range(2)]
        pairs.append(PreferencePair(f"prompt {i}", words[0] + "!", words[1] + "?"))
    return pairs


def test_the_loss_by_hand() -> None:
    got = bradley_terry_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]))
    truth = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(3.0))]
    assert got.tolist() == pytest.approx(truth, rel=1e-6)


def test_it_learns_the_rule_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    base = base_of()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    options = RewardTraining(epochs=2, learning_rate=1e-2, held_out=0.25, pairs_per_update=16)
    said: list[str] = []
    trained = train_reward(base, gold_pairs(320), options, say=said.append)
    assert trained.accuracy.total + trained.num_trained_on == 320
    assert trained.accuracy.share > 0.95
    assert trained.longer_is_chosen.low < 0.5 < trained.longer_is_chosen.high + 0.1
    assert said and all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    folder = tmp_path / "rm"
    save_reward_adapter(folder, trained.found, base, record={"accuracy": 1.0})
    again = base_of()
    found = load_reward_adapter(KEY, str(folder), again)
    maker = row_maker(again.tokenizer, max_length=99)
    rows = [maker.of_texts("new", text) for text in ("abc!", "abc?", "much longer than that?")]
    scores = found.scores(again, rows, max_tokens=999)
    assert scores == pytest.approx(trained.found.scores(base, rows, max_tokens=1), abs=1e-4)
    assert scores[0] > max(scores[1:])
    with pytest.raises(ValueError, match=f"{KEY}.source must have been trained on the policy's ba"):
        load_reward_adapter(KEY, str(folder), base_of(seed_shift=0.3))
    with pytest.raises(
        ValueError, match=f"{KEY}.source must fit the policy's model, .* scale|shape"
    ):
        load_reward_adapter(KEY, str(folder), base_of(rank=4))
    (folder / "reward_model.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{KEY}.source must fit the policy's model"):
        load_reward_adapter(KEY, str(folder), again)


def test_parts_of_any_size_give_the_same_update() -> None:
    """One update by parts of a pair each, and as a whole: the same adapter to rounding."""
    results = []
    for tokens in (1, 100_000):
        base = base_of()
        options = RewardTraining(
            pairs_per_update=12, tokens_per_batch=tokens, held_out=0.2, learning_rate=1e-3
        )
        trained = train_reward(base, gold_pairs(14), options, say=lambda line: None)
        results.append(trained.found)
    first, second = results
    # AdamW's first step is the sign of the gradient: rounding decides where it is almost 0.
    assert first.head.weight == pytest.approx(second.head.weight, abs=1e-4)


def test_pairs_are_read_from_texts_and_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": turns, "chosen": [good], "rejected": [bad]},
        {"chosen": [*turns, good], "rejected": [*turns, bad]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = read_pairs("pairs", file)
    assert first == ("q", "a", "b")
    assert second == third == (tuple(turns), "yes", "no")
    file.write_text(json.dumps({"prompt": 3, "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(ValueError, match=r"pairs: row 0 of .*: column prompt must be text or mess"):
        read_pairs("pairs", file)
    file.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"row 0 of .*: chosen and rejected must differ, got 'a' "):
        read_pairs("pairs", file)
    with pytest.raises(ValueError, match=r"pairs must be a file of preferences, got none\.jsonl"):
        read_pairs("pairs", Path("none.jsonl"))
