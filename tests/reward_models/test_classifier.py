"""A reward model against transformers: small classifiers of different padding rules."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_judge import group_of
from tiny_classifiers import END, KINDS, write_classifier
from tiny_tokenizers import byte_level_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlkit.reward_models.batches import batches, score_rows
from rlkit.reward_models.classifier import Classifier, check_padding
from rlkit.reward_models.inputs import RowMaker
from rlkit.reward_models.options import ChatFormat, EndToken, reward_model_options
from rlkit.reward_models.scorer import RewardModelScorer
from rlkit.reward_models.worker import IsolatedRewardModel
from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.types import Completion, FinishReason, Prompt

CPU = torch.device("cpu")
KEY = "reward.functions.rm.options"
ROWS = [[5, 9, 40, 8, END], [7], [40, 40, 40], [11, 12, END, END], list(range(4, 40)), [9, END]]


def spec_of(source: Path | str, **options: Any) -> RewardSpec:
    return RewardSpec("rm", "reward_model", 1.0, {"source": str(source), **options})


def alone(model: PreTrainedModel, row: list[int]) -> float:
    """transformers on one row without padding; without a pad id it reads the last token."""
    model.config.pad_token_id, kept = None, model.config.pad_token_id
    with torch.no_grad():
        score = float(model(input_ids=torch.tensor([row])).logits[0, 0])
    model.config.pad_token_id = kept
    return score


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_scores_are_those_of_each_row_alone(kind: str, max_tokens: int, tmp_path: Path) -> None:
    model = write_classifier(tmp_path, kind)
    ours = Classifier(KEY, reward_model_options(spec_of(tmp_path)), CPU)
    got = score_rows(
        ROWS, ours.score, max_tokens=max_tokens, pad_id=ours.pad_id, device=ours.device
    )
    truth = [alone(model, row) for row in ROWS]
    assert got == pytest.approx(truth, abs=2e-5, rel=2e-5)
    assert max(truth) - min(truth) > 0.1


def test_transformers_reads_the_wrong_place_when_pad_is_eos(tmp_path: Path) -> None:
    """The trap that the place by length avoids: it is still there, so the test above means much."""
    model = write_classifier(tmp_path, "pad is eos")
    with torch.no_grad():
        theirs = float(model(input_ids=torch.tensor([ROWS[0]])).logits[0, 0])
    assert abs(theirs - alone(model, ROWS[0])) > 1e-2
    assert theirs == pytest.approx(alone(model, ROWS[0][:-1]), abs=1e-5)


def test_batches_keep_to_the_budget() -> None:
    lengths = [3, 90, 10, 10, 10, 200, 1]
    found = list(batches(lengths, max_tokens=100))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    for batch in found:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 100
    assert found[0] == [5]


def test_bfloat16_has_a_float32_head(tmp_path: Path) -> None:
    write_classifier(tmp_path, "own pad")
    options = reward_model_options(spec_of(tmp_path, dtype="bf16"))
    ours = Classifier(KEY, options, CPU)
    auto: Any = AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        state = model.base_model(input_ids=torch.tensor([ROWS[4]])).last_hidden_state[0, -1]
        truth = float(model.score.weight.double()[0] @ state.double())
    (got,) = score_rows([ROWS[4]], ours.score, max_tokens=99, pad_id=0, device=CPU)
    assert got == pytest.approx(truth, abs=1e-5)
    assert got != float(torch.tensor(got).bfloat16())


def test_a_row_is_the_models_own_template_with_one_beginning() -> None:
    tokenizer = byte_level_tokenizer(adds_bos=True)
    maker = RowMaker(
        tokenizer=tokenizer, chat=ChatFormat.own, eos=EndToken.as_sampled, max_length=999
    )
    turns = ({"role": "user", "content": "hi"},)
    start, end = "<|im_start|>", "<|im_end|>"
    whole = f"{start}user\nhi{end}\n{start}assistant\nanswer{end}\n"
    assert maker.of_texts(turns, "answer") == tokenizer(whole, add_special_tokens=False).input_ids
    cut = maker.of_texts(turns, "answer", cut=True)
    assert str(tokenizer.decode(cut)).endswith("assistant\nanswer")
    assert maker.of_texts("hi", "answer") == maker.of_texts(turns, "answer")
    never = RowMaker(tokenizer=tokenizer, chat=ChatFormat.own, eos=EndToken.never, max_length=3)
    assert never.of_texts(turns, "answer") == cut
    assert never.cut(cut) == cut[-3:]
    plain = RowMaker(
        tokenizer=tokenizer, chat=ChatFormat.plain, eos=EndToken.as_sampled, max_length=9
    )
    bos, text = tokenizer.bos_token_id, tokenizer("hi\nyo", add_special_tokens=False).input_ids
    assert plain.of_texts(turns, "yo") == [bos, *text, tokenizer.eos_token_id]
    assert plain.of_texts(turns, "yo", cut=True) == [bos, *text]


def scorer_of(folder: Path, *, is_chat: bool = True, **options: Any) -> RewardModelScorer:
    return RewardModelScorer(spec_of(folder, **options), device=CPU, is_chat=is_chat)


def test_the_scorer_counts_what_it_cuts_and_knows_the_end(tmp_path: Path) -> None:
    model = write_classifier(tmp_path, "own pad")
    scorer = scorer_of(tmp_path, max_length=20)
    scorer.check()
    scorer.start()
    prompt = Prompt(index=0, ids=(), text="", messages=({"role": "user", "content": "hi"},))
    group = [
        Completion(prompt=prompt, text=text, ids=(), finish_reason=reason)
        for text, reason in (
            ("yes", FinishReason.stop),
            ("yes", FinishReason.length),
            ("so " * 30, FinishReason.stop),
        )
    ]
    found = scorer.score([group])
    tokenizer = byte_level_tokenizer()
    head = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    texts = [f"{head}yes<|im_end|>\n", f"{head}yes", f"{head}{'so ' * 30}<|im_end|>\n"]
    rows = [tokenizer(text, add_special_tokens=False).input_ids[-20:] for text in texts]
    assert found.groups[0].values == pytest.approx([alone(model, r) for r in rows], abs=2e-5)
    assert found.counts["overlong"] == sum(
        len(tokenizer(text, add_special_tokens=False).input_ids) > 20 for text in texts
    )


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    write_classifier(tmp_path / "two", "own pad", num_labels=2)
    with pytest.raises(ValueError, match=f"{KEY}.source must have one label, .* with 2"):
        scorer_of(tmp_path / "two").check()
    with pytest.raises(ValueError, match=f"{KEY}.source must be a folder or a hub id"):
        scorer_of(tmp_path / "none").check()
    write_classifier(tmp_path / "headless", "own pad")
    config = json.loads((tmp_path / "headless/config.json").read_text())
    policy = tmp_path / "policy"
    shutil.copytree(tmp_path / "headless", policy)
    (policy / "config.json").write_text(
        json.dumps(config | {"architectures": ["LlamaForCausalLM"]})
    )
    with pytest.raises(ValueError, match=r"must be a sequence classifier, got .*LlamaForCausalLM"):
        scorer_of(policy).check()
    byte_level_tokenizer(chat_template=None).save_pretrained(tmp_path / "headless")
    (tmp_path / "headless/chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"must have a chat template for a chat task, .* chat=pla"):
        scorer_of(tmp_path / "headless").check()
    scorer_of(tmp_path / "headless", is_chat=False).check()
    with pytest.raises(ValueError, match=f"{KEY}.device must be auto or cuda or cpu or process"):
        scorer_of(tmp_path, device="tpu")
    for option, value, rule in (
        ("timeout_s", math.nan, "a number, got nan"),
        ("timeout_s", 0, "> 0, got 0"),
        ("max_length", 64.5, "a whole number, got 64.5"),
        ("max_tokens_per_batch", "many", "a whole number, got 'many'"),
        ("revision", 5, "a text, got 5"),
    ):
        with pytest.raises(ValueError, match=f"{KEY}.{option} must be {rule}"):
            scorer_of(tmp_path, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must score a row alone as in a batch, got 1 and 2"):
        check_padding(KEY, lambda rows: [float(len(rows))] * len(rows), [[1], [2]])


def test_a_process_of_its_own_gives_the_same_scores_and_dies_alone(tmp_path: Path) -> None:
    write_classifier(tmp_path, "own pad")
    here = scorer_of(tmp_path, is_chat=False)
    here.check()
    here.start()
    groups = [group_of("one", "two words"), group_of("three", index=1)]
    spec = spec_of(tmp_path, device="process", timeout_s=60.0)
    apart = IsolatedRewardModel(scorer_of(tmp_path, is_chat=False), spec, is_chat=False)
    with RewardPool([spec], RewardConfig(), {"rm": apart}) as pool:
        pool.start()
        scores = pool.score(groups)
        want = [reply.values for reply in here.score(groups).groups]
        assert [[parts[0] for parts in g] for g in scores.components] == [
            pytest.approx(values, abs=1e-6) for values in want
        ]
        assert not pool.pids
        assert scores.metrics()["time/reward/rm"] > 0.0
        for worker in apart._pool._workers:
            worker._process.kill()
            worker._process.wait()  # before the next call: a death during one is its failure
        again = pool.score(groups)
        assert not again.failures
