"""The model, the tokenizer and the environment that tests of episodes share."""

from __future__ import annotations

from pathlib import Path

import pytest
from episode_stage import MODULE, talking_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("environments") / "talker.py"
    path.write_text(MODULE)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return talking_model(tokenizer)
