"""A model folder small enough to run the real command line on: a Llama over bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from byte_model import write_byte_model
from cli_process import RunCLI
from warm_cli import Forks


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in Hugging Face format, with a tokenizer of one token a byte."""
    return write_byte_model(tmp_path_factory.mktemp("models") / "tiny")


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
