"""A model folder small enough to run the real command line on: a Llama over bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from cli_process import RunCLI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from warm_cli import Forks

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in Hugging Face format, with a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<pad>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    stop, pad = vocabulary["</s>"], vocabulary["<pad>"]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=stop,
        pad_token_id=pad,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=stop, pad_token_id=pad
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
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
