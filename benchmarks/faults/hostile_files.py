"""The files of F15: what a stranger's model, adapter, checkpoint or GGUF file may hold."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]
"""Makes a good folder bad."""
EXECUTED = "executed"
"""Code of a stranger makes a file of this name in the folder above."""


class _Evil:
    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self._place}",)


def _pickled(folder: Path) -> bytes:
    return pickle.dumps(_Evil(folder.parent / EXECUTED))


def _code(folder: Path) -> str:
    return f"open({str(folder.parent / EXECUTED)!r}, 'w').close()\n"


def _write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def _json(name: str, **changes: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / name
        values = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**values, **changes}))

    return change


def _header(header: bytes, *, length: int | None = None) -> Change:
    size = struct.pack("<Q", len(header) if length is None else length)
    return _write("model.safetensors", size + header + bytes(64))


def _tensors(
    name: str, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Change:
    def change(folder: Path) -> None:
        save_file(edit(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return change


def _other_shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(3, 5) for name in tensors}


def _nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}


def _without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


def _index(weight_map: object) -> Change:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    return _write("model.safetensors.index.json", text.encode())


def _pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(_pickled(folder))


def _remote_code(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "evil.py").write_text(_code(folder) + "class Evil: pass\n")
        _json(name, auto_map={key: "evil.Evil"}, model_type="evil")(folder)

    return change


def _tokenizer_code(folder: Path) -> None:
    (folder / "evil.py").write_text(_code(folder) + "class Evil: pass\n")
    values = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    _json("tokenizer_config.json", **values)(folder)


def _template(text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        _json("tokenizer_config.json", chat_template=text)(folder)

    return change


def _link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def _folder_in_place_of(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def _fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


_DEEP = b"[" * 9000 + b"]" * 9000
_ESCAPE = (
    "{{ ().__class__.__mro__[1].__subclasses__()[0].__init__.__globals__['os'].system('id') }}"
)
_OFFSETS = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}}).encode()
_SHAPE = json.dumps({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}).encode()
_DTYPE = json.dumps({"w": {"dtype": "EVIL", "shape": [4], "data_offsets": [0, 16]}}).encode()

MODELS: Mapping[str, Change] = {
    "a pickle alone": _pickle_alone,
    "a pickle called safetensors": lambda f: (f / "model.safetensors").write_bytes(_pickled(f)),
    "a header of 2^60 bytes": _header(b"{}", length=2**60),
    "a header longer than the file": _header(b"{}", length=10**6),
    "a header that is no JSON": _header(b"not json"),
    "a header nested deep": _header(_DEEP),
    "offsets outside": _header(_OFFSETS),
    "a negative shape": _header(_SHAPE),
    "an unknown dtype": _header(_DTYPE),
    "an empty weights file": _write("model.safetensors", b""),
    "a tensor missing": _tensors("model.safetensors", _without_one),
    "tensors of other shapes": _tensors("model.safetensors", _other_shapes),
    "weights of NaN": _tensors("model.safetensors", _nan),
    "a shard above": _index({"w": "../model.safetensors"}),
    "a shard elsewhere": _index({"w": "/etc/passwd"}),
    "a shard that is missing": _index({"w": "model-00001-of-00002.safetensors"}),
    "an index that is a list": _write("model.safetensors.index.json", b"[]"),
    "a config that is no JSON": _write("config.json", b"{"),
    "a config nested deep": _write("config.json", _DEEP),
    "a config that is a list": _write("config.json", b"[]"),
    "a million layers": _json("config.json", num_hidden_layers=10**6),
    "negative sizes": _json("config.json", hidden_size=-8),
    "a size that is text": _json("config.json", vocab_size="16"),
    "heads that do not divide": _json("config.json", num_attention_heads=7),
    "an unknown family": _json("config.json", model_type="evil"),
    "code for the model": _remote_code("config.json", "AutoModelForCausalLM"),
    "code for the config": _remote_code("config.json", "AutoConfig"),
    "code for the tokenizer": _tokenizer_code,
    "a tokenizer that is no JSON": _write("tokenizer.json", b"{"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "a template without end": _template("{% for i in range(10**9) %}x{% endfor %}"),
    "a template that looks for a way out": _template(_ESCAPE),
    "a template that does not parse": _template("{% for %}"),
    "a template of 10^9 characters": _template("{{ 'x' * 1000000000 }}"),
    "an end token of 10^9": _json("config.json", eos_token_id=10**9),
    "a generation config that is no JSON": _write("generation_config.json", b"{"),
    "weights that are a link": _link("model.safetensors", "/etc/passwd"),
    "a config that is a folder": _folder_in_place_of("config.json"),
    "weights that are a pipe": _fifo("model.safetensors"),
    "a config that is a pipe": _fifo("config.json"),
}
ADAPTERS: Mapping[str, Change] = {
    "a pickle alone": lambda f: (
        (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        (f / "adapter_model.bin").write_bytes(_pickled(f)),
    ),
    "a pickle called safetensors": lambda f: (f / "adapter_model.safetensors").write_bytes(
        _pickled(f)
    ),
    "tensors of other shapes": _tensors("adapter_model.safetensors", _other_shapes),
    "a tensor missing": _tensors("adapter_model.safetensors", _without_one),
    "tensors of NaN": _tensors("adapter_model.safetensors", _nan),
    "a rank of 10^30": _json("adapter_config.json", r=10**30),
    "a config nested deep": _write("adapter_config.json", _DEEP),
    "a pattern that hangs": _json("adapter_config.json", target_modules="(a+)+$"),
}
CHECKPOINTS: Mapping[str, Change] = {
    "a pickle in place of weights": lambda f: _of_newest(f, "adapter.safetensors", _pickled(f)),
    "a pickle in place of moments": lambda f: _of_newest(f, "optimizer.safetensors", _pickled(f)),
    "a state that is a pickle": lambda f: _of_newest(f, "state.json", _pickled(f)),
    "a state nested deep": lambda f: _of_newest(f, "state.json", _DEEP),
    "a linked checkpoint": lambda f: _linked_checkpoint(f),
    "a linked record": _link("metrics.jsonl", "/etc/passwd"),
    "a config that runs code": lambda f: (f / "config.yaml").write_text(
        f"!!python/object/apply:os.system ['touch {f.parent / EXECUTED}']\n"
    ),
    "a config that multiplies": _write(
        "config.yaml",
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n".encode()
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
    ),
}


def _of_newest(run: Path, name: str, content: bytes) -> None:
    newest = max((run / "checkpoints").glob("step-*"))
    (newest / name).write_bytes(content)


def _linked_checkpoint(run: Path) -> None:
    newest = max((run / "checkpoints").glob("step-*"))
    elsewhere = run.parent / f"{run.name}-elsewhere"
    shutil.move(newest, elsewhere)
    newest.symlink_to(elsewhere)


def _gguf(tensors: int = 0, pairs: int = 0, body: bytes = b"", *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def _text(text: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


_LLAMA = _pair(b"general.architecture", 8, _text(b"llama"))
GGUFS: Mapping[str, bytes] = {
    "other magic bytes": b"PK\x03\x04" + bytes(64),
    "magic bytes alone": b"GGUF",
    "version 99": _gguf(version=99),
    "2^60 tensors": _gguf(tensors=2**60, pairs=1, body=_LLAMA),
    "2^60 pairs": _gguf(pairs=2**60, body=_LLAMA),
    "a text of 2^62 bytes": _gguf(pairs=1, body=_text(b"a", length=2**62)),
    "a list of 2^60 items": _gguf(pairs=1, body=_pair(b"a", 9, struct.pack("<IQ", 4, 2**60))),
    "a nest of lists": _gguf(pairs=1, body=_pair(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)),
    "an unknown kind of value": _gguf(pairs=1, body=_pair(b"a", 99, b"")),
    "an unknown architecture": _gguf(
        pairs=1, body=_pair(b"general.architecture", 8, _text(b"../evil"))
    ),
    "an alignment of 0": _gguf(
        pairs=2, body=_LLAMA + _pair(b"general.alignment", 4, struct.pack("<I", 0))
    ),
    "no tensors": _gguf(pairs=1, body=_LLAMA),
    "no architecture": _gguf(),
}
