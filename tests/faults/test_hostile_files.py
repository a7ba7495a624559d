"""F15: links, shards, sizes and texts of others lead nowhere outside and end in one line."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlkit.config import ConfigError
from rlkit.launch.place import check_place
from rlkit.models.config import ModelConfig
from rlkit.models.peft_config import read_adapter_config
from rlkit.models.source import architecture_at, check
from rlkit.report.export import _csv
from rlkit.report.load import StudyError, load_study
from rlkit.tasks.data import json_value, read_file
from rlkit.tracking.base import TrackingError
from rlkit.tracking.files import JsonLines
from rlkit.training.state_file import CheckpointError, read_state

ROOT = Path(__file__).parent.parent.parent
LINKS = {
    "metrics": "metrics.jsonl",
    "log": "log.txt",
    "lock": ".lock",
    "checkpoints": "checkpoints",
    "a checkpoint": "checkpoints/step-000002",
    "a file of a checkpoint": "checkpoints/step-000002/state.json",
    "a completion": "completions/step-0.parquet",
}


@pytest.mark.parametrize("name", LINKS)
def test_a_run_folder_with_a_link_is_refused(name: str, tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    link = run / LINKS[name]
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(ConfigError) as caught:
        check_place(run)
    assert str(caught.value) == f"run_dir must be a folder without symbolic links in it, got {link}"
    assert outside.read_text() == "mine"


def test_a_run_folder_that_is_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    check_place(tmp_path / "run")


def test_records_are_not_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    (tmp_path / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(TrackingError, match=r"cannot write .*metrics\.jsonl"):
        JsonLines(tmp_path / "metrics.jsonl", kept=())
    assert outside.read_text() == ""


def test_a_linked_checkpoint_counts_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "step-000002").symlink_to(tmp_path / "real")
    with pytest.raises(CheckpointError, match="symbolic link, which is not followed"):
        read_state(tmp_path / "step-000002")


CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16}


def model(folder: Path) -> Path:
    """A folder that the check of a model takes."""
    folder.mkdir()
    config(folder)
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard outside": (
        lambda f: index(f, json.dumps({"weight_map": {"w": "../model.safetensors"}})),
        "a folder whose index names shards in it, got '../model.safetensors'",
    ),
    "an absolute shard": (
        lambda f: index(f, json.dumps({"weight_map": {"w": "/etc/passwd"}})),
        "a folder whose index names shards in it, got '/etc/passwd'",
    ),
    "a shard that is a number": (
        lambda f: index(f, json.dumps({"weight_map": {"w": 5}})),
        "a folder whose index names shards in it, got 5",
    ),
    "an index without a map": (lambda f: index(f, "{}"), "a valid model.safetensors.index.json"),
    "an index that is a list": (lambda f: index(f, "[]"), "a valid model.safetensors.index.json"),
    "an index nested deep": (lambda f: index(f, "[" * 9000), "model.safetensors.index.json"),
    "a config nested deep": (
        lambda f: (f / "config.json").write_text("[" * 9000 + "]" * 9000),
        "must have a valid config.json",
    ),
    "a million layers": (
        lambda f: config(f, num_hidden_layers=10**6),
        "num_hidden_layers in [1, 1000], got 1000000",
    ),
    "negative sizes": (
        lambda f: config(f, hidden_size=-8),
        "hidden_size in [1, 1000000], got -8",
    ),
    "a size that is text": (
        lambda f: config(f, vocab_size="16"),
        "vocab_size in [1, 100000000], got '16'",
    ),
    "a header nested deep": (
        lambda f: (f / "model.safetensors").write_bytes((9000).to_bytes(8, "little") + b"[" * 9000),
        "intact weights",
    ),
    "a pipe, which nobody writes to": (
        lambda f: os.mkfifo(f / "tokenizer.json"),
        "must be a folder of plain files, got ",
    ),
    "a generation config that is no JSON": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "must be a folder with a valid generation_config.json or none, got ",
    ),
    "a device": (
        lambda f: (f / "generation_config.json").symlink_to("/dev/zero"),
        "must be a folder of plain files, got ",
    ),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pickle files can run code and are never read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_hostile_model_folder_is_one_line(name: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    check(ModelConfig(source=str(folder)))
    make, said = BROKEN[name]
    make(folder)
    with pytest.raises(ValueError, match=r"^model\.source must") as caught:
        check(ModelConfig(source=str(folder)))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_config_that_transformers_refuses_is_one_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    config(folder, hidden_size=32, num_attention_heads=7, intermediate_size=8)
    with pytest.raises(ValueError, match=r"^model\.source must be a model folder, got") as caught:
        architecture_at(str(folder), ModelConfig(source=str(folder)))
    assert "not a multiple of the number of attention heads" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "must hold an object, got list"),
        ({"peft_type": "LORA"}, "r must be a whole number in [1, 8192], got None"),
        ({"peft_type": "LORA", "r": 10**30, "lora_alpha": 1}, "r must be a whole number"),
        ({"peft_type": "LORA", "r": "8", "lora_alpha": 1}, "r must be a whole number"),
        ({"peft_type": "LORA", "r": 8, "lora_alpha": "x"}, "lora_alpha must be a number"),
        ({"peft_type": "LORA", "r": 8, "lora_alpha": float("inf")}, "lora_alpha must be a number"),
    ],
)
def test_a_hostile_adapter_is_one_line(values: object, said: str, tmp_path: Path) -> None:
    if isinstance(values, dict):
        values = {"target_modules": ["q_proj"], **values}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"adapter_config\.json") as caught:
        read_adapter_config(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("depth", [900, 20_000])
def test_rows_nested_deep_are_one_line(depth: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "answer": ' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(ValueError, match="nested"):
        for row in read_file(file).rows:
            json_value(row["answer"], "row 0: column answer")


def test_a_column_that_utf8_cannot_hold_is_refused_before_the_run() -> None:
    with pytest.raises(ValueError, match="row 0 must be text that UTF-8 can hold"):
        json_value(["\ud800"], "row 0")


def test_a_sweep_record_that_names_folders_outside_is_refused(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    job = {"id": "a", "folder": "../secret", "overrides": []}
    (sweep / "sweep.json").write_text(json.dumps({"version": 1, "jobs": [job]}))
    with pytest.raises(StudyError, match="must name folders inside"):
        load_study([sweep])


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_table_holds_no_formula(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(_csv([{"a": text, "b": -0.5}], ["a", "b"]).decode()))
    assert row == {"a": f"'{text}".replace("\r", " "), "b": "-0.5"}


def test_nothing_of_rlkit_reads_or_writes_pickle() -> None:
    """Neither by name nor through a function that would."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    found = []
    for room in ("rlkit", "algorithms", "rewards", "kernels"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                elif isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called in ("torch.load", "torch.save", "pd.read_pickle"):
                        found.append(f"{path}:{node.lineno} calls {called}")
                    if any(k.arg == "allow_pickle" for k in node.keywords):
                        found.append(f"{path}:{node.lineno} says allow_pickle")
                found += [f"{path} imports {n}" for n in names if n.split(".")[0] in banned]
    assert found == []
