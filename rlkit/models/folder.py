"""A model's folder is checked before it is read: what it says it holds, and that it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.models.families import check_family
from rlkit.schema import require

_MOST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "num_attention_heads": 100_000,
    "vocab_size": 100_000_000,
}
"""Sizes in config.json, and the largest that a model can mean."""


def check_folder(folder: Path) -> None:
    """Raise ValueError unless `folder` holds a supported model with intact safetensors files."""
    name = str(folder)
    check_plain(folder, key="model.source")
    config_file = folder / "config.json"
    require(config_file.is_file(), "model.source", "a model folder (with config.json)", name)
    try:
        values = json.loads(config_file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"model.source must have a valid config.json, got {name}: {error}"
        ) from error
    require(
        isinstance(values, dict), "model.source", "a folder whose config.json holds an object", name
    )
    check_family(str(values.get("model_type")), source=name)
    _check_sizes(values, name)
    _check_generation_config(folder)
    shards = _shards(folder)
    if not shards and any(folder.glob("*.bin")):
        raise ValueError(
            "model.source must have safetensors weights (pickle files can run code and are never "
            f"read), got {name} with .bin files; where you trust them, convert them once with "
            "AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)"
        )
    require(bool(shards), "model.source", "a folder with *.safetensors weights", name)
    for shard in shards:
        _check_safetensors(shard)


def _check_generation_config(folder: Path) -> None:
    """Refuse one that cannot be read: its stop tokens would be left out without a word."""
    file = folder / "generation_config.json"
    try:
        whole = not file.exists() or isinstance(json.loads(file.read_text()), dict)
    except (OSError, ValueError, RecursionError):
        whole = False
    require(whole, "model.source", "a folder with a valid generation_config.json or none", folder)


def check_plain(folder: Path, *, key: str) -> None:
    """Refuse a folder with a pipe, a device or a dead link in it: who opens one waits for ever."""
    odd = [path for path in sorted(folder.iterdir()) if not (path.is_file() or path.is_dir())]
    require(not odd, key, "a folder of plain files", odd and odd[0])


def _check_sizes(values: Mapping[str, Any], name: str) -> None:
    """Refuse sizes that no model has: building one of a million layers seems to have no end."""
    for key, most in _MOST.items():
        value = values.get(key, 1)
        whole = isinstance(value, int) and not isinstance(value, bool)
        rule = f"a folder whose config.json has {key} in [1, {most}]"
        require(whole and 1 <= value <= most, "model.source", rule, f"{value!r:.60} in {name}")


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    rule = "a folder with a valid model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"model.source must be {rule}, got {folder}: {error!r:.200}") from error
    for name in names:
        inside = isinstance(name, str) and Path(name).name == name
        require(inside, "model.source", "a folder whose index names shards in it", f"{name!r}")
        require(
            (folder / name).is_file(),
            "model.source",
            f"a folder with all its shards ({name})",
            str(folder),
        )
    return [folder / name for name in names]


def _check_safetensors(path: Path) -> None:
    """The header must parse and its offsets must end where the file does: finds cut-off copies."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(header_size, size)))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        ends = []
    rule = f"a folder with intact weights ({path.name} is corrupt or cut off)"
    require(
        bool(ends) and 8 + header_size + max(ends) == size, "model.source", rule, str(path.parent)
    )
