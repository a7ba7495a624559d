"""What `model.source` may name, and what is found out before weights are read."""

from __future__ import annotations

import json
import multiprocessing
import re
from pathlib import Path

import pytest

from rlkit.models import ModelConfig
from rlkit.models.convert import build_once
from rlkit.models.source import SourceKind, cache_root, check, kind_of, locate


def test_kinds(folder: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"GGUF")
    assert kind_of("starter") is SourceKind.starter
    assert kind_of("Qwen/Qwen2.5-1.5B-Instruct") is SourceKind.hub
    assert kind_of(str(folder)) is SourceKind.folder
    assert kind_of(str(gguf)) is SourceKind.gguf


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("./nowhere", "an existing folder or .gguf file"),
        ("/nowhere/at/all", "an existing folder or .gguf file"),
        ("nowhere.gguf", "an existing file"),
        ("a/b/c", "`starter`, a hub id (owner/name), a folder or a .gguf file"),
        ("Qwen/../x", "`starter`, a hub id (owner/name), a folder or a .gguf file"),
    ],
)
def test_what_names_nothing_is_refused(source: str, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model.source must be {rule}, got {source}")):
        check(ModelConfig(source=source))


def test_an_intact_folder_passes_and_is_used_where_it_is(folder: Path) -> None:
    said: list[str] = []
    assert locate(ModelConfig(source=str(folder)), say=said.append) == str(folder)
    assert said == []


def refused(folder: Path) -> str:
    """The one-line message for `folder`."""
    with pytest.raises(ValueError) as caught:
        check(ModelConfig(source=str(folder)))
    message = str(caught.value)
    assert message.startswith("model.source must ")
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json" in refused(folder)


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "valid config.json" in refused(folder)


def test_an_unsupported_family(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
    assert "of type bert" in refused(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "*.safetensors" in refused(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pickle" in message and "save_pretrained" in message


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_cut_off_weights(folder: Path, kept: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors is corrupt or cut off" in refused(folder)


def test_a_corrupt_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[8:40] = b"\xff" * 32
    weights.write_bytes(data)
    assert "model.safetensors is corrupt or cut off" in refused(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(folder)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04")
    assert "magic bytes" in refused(path)


def test_a_revision_belongs_to_a_hub_id(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model.revision must be unset"):
        check(ModelConfig(source=str(folder), revision="main"))
    check(ModelConfig(source="Qwen/Qwen2.5-1.5B", revision="main"))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root("/some/where") == Path("/some/where")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / "rlkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_root(None) == Path("/home/x/.cache/rlkit")


def _append_and_build(folder: Path, log: Path) -> None:
    def build(scratch: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        (scratch / "data").write_text("complete")

    build_once(folder, build)


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folder, log = tmp_path / "cache" / "model", tmp_path / "log"
    workers = [context.Process(target=_append_and_build, args=(folder, log)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert log.read_text() == "built\n"
    assert (folder / "data").read_text() == "complete"


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "model"

    def fail(scratch: Path) -> None:
        (scratch / "half").write_text("x")
        raise ValueError("no network")

    with pytest.raises(ValueError, match="no network"):
        build_once(folder, fail)
    assert [p.name for p in folder.parent.iterdir()] == [".model.lock"]
    _append_and_build(folder, tmp_path / "log")
    assert (folder / "data").read_text() == "complete"


def test_leftovers_of_a_killed_build_are_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "model"
    leftover = folder.with_name(".model.partial")
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    _append_and_build(folder, tmp_path / "log")
    assert [p.name for p in folder.iterdir()] == ["data"]
    assert not leftover.exists()
