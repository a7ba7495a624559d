"""A saved tiny model with a tokenizer of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import letter_tokenizer


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model("llama", dtype=torch.float32)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, 3]
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "tiny"))
