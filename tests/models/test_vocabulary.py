"""Tokens without a row in the embedding, and tokenizers without end or padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from folder_run import run_config
from tiny_run import Recorder
from transformers import AutoTokenizer

from rlkit.assembly.assemble import assemble
from rlkit.config import ConfigError
from rlkit.generation import HFGeneratorConfig
from rlkit.generation.hf import HFGenerator
from rlkit.models import ModelConfig
from rlkit.models.load import BaseModel, load_model
from rlkit.models.vocabulary import check_ids, pad_id, without_rows
from rlkit.training.stopping import StopRequest
from rlkit.types import Prompt, SamplingConfig

ROWS = 67  # of the tiny models; their tokenizer has 35 tokens
CPU = torch.device("cpu")


def load(folder: Path) -> BaseModel:
    return load_model(ModelConfig(source=str(folder)), device=CPU, say=lambda _: None)


def add_tokens(folder: Path, tokens: Sequence[str], **special: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def forget(folder: Path, *names: str) -> None:
    """A tokenizer and a model without these special tokens."""
    for file in ("tokenizer_config.json", "config.json", "generation_config.json"):
        values = json.loads((folder / file).read_text())
        kept = {k: v for k, v in values.items() if k not in names and k not in (f"{names[0]}_id",)}
        for name in names:
            kept.pop(f"{name}_id", None)
        if file == "config.json":
            kept |= {f"{name}_id": None for name in names}
        (folder / file).write_text(json.dumps(kept))


def test_a_prompt_with_a_token_without_a_row_is_refused_before_training(
    folder: Path, tmp_path: Path
) -> None:
    add_tokens(folder, [f"<t{i}>" for i in range(40)])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert list(without_rows(tokenizer, ROWS)) == list(range(ROWS, 75))
    rows = [{"prompt": f"say {'abcdefghijkl'[i]}", "answer": "a"} for i in range(12)]
    bad = [*rows[:6], {"prompt": "say <t35>", "answer": "a"}, *rows[6:]]
    with pytest.raises(ConfigError, match=r"must have token ids below 67") as error:
        assemble(run_config(folder, bad, tmp_path), say=lambda _: None)
    assert "got 70 ('<t35>')" in str(error.value) and "\n" not in str(error.value)


def test_tokens_without_rows_that_no_prompt_has_are_said(folder: Path) -> None:
    add_tokens(folder, [f"<t{i}>" for i in range(40)])
    (note,) = [n for n in load(folder).notes if n.startswith("tokenizer: ")]
    assert note.startswith(
        "tokenizer: 8 tokens have no row in the model's embedding of 67 ('<t32>'"
    )


def test_a_pad_or_end_token_without_a_row_is_replaced_and_left_out(folder: Path) -> None:
    add_tokens(folder, [f"<t{i}>" for i in range(40)], pad_token="<t39>", eos_token="<t38>")
    base = load(folder)
    assert (base.tokenizer.pad_token_id, base.tokenizer.eos_token_id) == (74, 73)
    assert base.pad_token_id == 0
    assert base.stop_ids == {2, 3}  # of the generation config
    assert "stop tokens: [73] left out, as the model cannot sample them" in base.notes


def test_neither_end_nor_padding_samples_to_the_full_length(folder: Path) -> None:
    forget(folder, "eos_token", "pad_token")
    base = load(folder)
    assert base.tokenizer.eos_token_id is None and base.tokenizer.pad_token_id is None
    assert (base.pad_token_id, base.stop_ids) == (0, frozenset())
    assert any(n.startswith("stop tokens: none") for n in base.notes)
    assert any(n.startswith("pad token: id 0") for n in base.notes)
    generator = HFGenerator(
        base.model,
        base.tokenizer,
        activate=lambda _: torch.no_grad(),
        stop_token_ids=base.stop_ids,
        config=HFGeneratorConfig(),
    )
    ((rollout,),) = generator.generate(
        [Prompt(index=0, ids=(5, 6), text="ab")],
        num_samples=1,
        sampling=SamplingConfig(max_completion_length=5),
        seeds=[[1]],
    )
    assert len(rollout.completion_ids) == 5


def test_neither_end_nor_padding_trains(folder: Path, tmp_path: Path) -> None:
    """From loading through the first evaluation, where padding used to be None."""
    forget(folder, "eos_token", "pad_token")
    rows = [{"prompt": f"say {'abcdefghijkl'[i]}", "answer": "a"} for i in range(12)]
    run = assemble(run_config(folder, rows, tmp_path), say=lambda _: None)
    tracker = Recorder()
    try:
        trainer = run.trainer(tracker, StopRequest(), run_dir=tmp_path / "run")
        trainer.fit(run.initial_state(), stop=StopRequest())
    finally:
        run.close()
    assert [record.label for record in tracker.evaluations] == ["before", "after"]
    assert tracker.steps[0].metrics["completions/mean_length"] == 8.0


def test_the_pad_id_is_the_first_that_has_a_row(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)  # </s> is 2, no padding
    assert pad_id(tokenizer, ROWS) == 2
    assert pad_id(tokenizer, 2) == 0
    check_ids([0, 66], ROWS, where="prompt 4", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="prompt 4 must have token ids below 67"):
        check_ids([0, 67], ROWS, where="prompt 4", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="got -1"):
        check_ids([-1], ROWS, where="prompt 4", tokenizer=tokenizer)


def test_an_embedding_larger_than_the_tokenizer_is_fine(folder: Path) -> None:
    """Qwen pads its embedding: what is sampled there has no text, and nothing breaks."""
    base = load(folder)
    assert base.num_rows == ROWS > len(base.tokenizer)
    assert base.tokenizer.decode([5, 66, 6], skip_special_tokens=True) == "bc"
