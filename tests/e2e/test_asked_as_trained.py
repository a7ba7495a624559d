"""`generate` and `chat` ask a run's model as the run asked it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from exported_run import random_adapter, random_model, run_folder

from rlkit.cli import UsageError
from rlkit.cli.session import Session, open_session
from rlkit.models import DType
from rlkit.policy.lora import LoRAConfig
from rlkit.tasks import Message

USUAL = dict.fromkeys(
    ("model", "adapter", "system", "max_tokens", "temperature", "top_p", "top_k", "min_p")
)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    source = random_model(tmp_path / "base", "llama")
    folder = run_folder(tmp_path / "run", source)
    random_adapter(source, folder, LoRAConfig(rank=3))
    return folder


def session(folder: Path, **options: object) -> Session:
    return open_session(Namespace(run=folder, template_kwargs={}, seed=0, **{**USUAL, **options}))


def _set_task(folder: Path, **task: object) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["task"] = task
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def test_sampling_stops_and_style_are_those_of_the_run(trained: Path) -> None:
    """max_of_n is plain text that ends with a line."""
    opened = session(trained)
    assert opened.sampling.temperature == 0.9 and opened.sampling.top_p == 0.95
    assert opened.sampling.stop == ("\n",) and opened.sampling.max_completion_length == 8
    assert opened.style == "raw" and opened.opening() == []
    other = session(trained, temperature=0.5, top_p=0.8, min_p=0.1, max_tokens=3).sampling
    assert (other.temperature, other.top_p, other.min_p) == (0.5, 0.8, 0.1)
    assert other.max_completion_length == 3
    assert session(trained, temperature=0.0).sampling.top_k == 1


def test_the_system_message_and_stops_of_a_data_set_need_no_data(trained: Path) -> None:
    task = {"path": "gone.jsonl", "columns": {"prompt": "q"}, "system": "Think.", "stop": ["END"]}
    _set_task(trained, name="dataset", **task)
    opened = session(trained, max_tokens=4)
    assert opened.opening() == [Message("system", "Think.")]
    assert opened.sampling.stop == ("END",)
    (rollout,) = opened.sample([*opened.opening(), Message("user", "Hi")], num_samples=1)
    start = "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert rollout.prompt.text == f"{start}<|im_start|>assistant\n"
    assert session(trained, system="Be brief.").opening() == [Message("system", "Be brief.")]


def test_the_dtype_is_the_one_that_the_run_computed_in(trained: Path) -> None:
    from rlkit.assembly.saved_run import read_finished_run

    (trained / "run.json").write_text(json.dumps({"dtype": "bfloat16"}))
    assert read_finished_run(trained, key="--run").model.dtype is DType.bf16


def test_values_out_of_range_are_one_line(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"sampling.min_p must be in \[0, 1\), got 1.5"):
        session(trained, min_p=1.5)
    with pytest.raises(UsageError, match=r"sampling.max_completion_length must be >= 1, got 0"):
        session(trained, max_tokens=0)
    with pytest.raises(UsageError, match="--run brings its own model"):
        session(trained, model="starter")
