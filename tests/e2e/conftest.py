"""A model folder small enough to run the real command line on: a Llama over bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from cli_process import RunCLI
from tiny_models import tiny_config
from tiny_tokenizers import byte_tokenizer
from transformers import GenerationConfig, LlamaForCausalLM
from warm_cli import Forks

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in Hugging Face format, with a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = byte_tokenizer(
        "<pad>", "</s>", pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = tiny_config(
        "llama",
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=1024,
        eos_token_id=stop,
        pad_token_id=pad,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=stop, pad_token_id=pad
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rlkit(forks: Forks, tmp_path: Path) -> RunCLI:
    """The command line in an empty folder."""

    def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return forks.start(*arguments, cwd=tmp_path).finish(timeout)

    return run


@pytest.fixture(scope="session")
def small(model_folder: Path) -> list[str]:
    """Overrides of a run that takes a second."""
    return [
        f"model.source={model_folder}",
        "task=max_of_n",
        "steps=4",
        "prompts_per_step=2",
        "algorithm.group_size=4",
        "evaluation.num_prompts=4",
        "evaluation.samples_per_prompt=1",
        "checkpoint.every=1",
        "memory.torch_threads=1",
        "reward.workers=1",
        "tracker.plot=false",
        "+reward.functions.digits.fn=" + f"{Path(__file__).parent / 'digits_reward.py'}:digits",
    ]
