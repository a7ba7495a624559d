"""Find a model: in the starter package, at a hub id, in a folder or in a GGUF file.

`locate` makes a folder in Hugging Face format (or a hub id) of any of them; `check` finds out
cheaply what would make that fail later. Every problem is a ValueError naming `model.source`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rlkit.models.config import AdapterUse, LoRAConfig, ModelConfig
from rlkit.models.convert import convert_gguf, first_line
from rlkit.models.families import check_family
from rlkit.models.folder import check_folder as check_folder
from rlkit.models.hub import require_reachable
from rlkit.models.peft_config import read_adapter_config
from rlkit.models.starter import starter_folder
from rlkit.runtime.say import Say
from rlkit.schema import require

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


_BROKEN = (
    *(OSError, TypeError, KeyError, AttributeError, IndexError, AssertionError, RecursionError),
    *(ZeroDivisionError, OverflowError, ImportError, SafetensorError, StrictDataclassError),
)
"""Errors of transformers where a file of the model holds something else than it should."""


class SourceKind(StrEnum):
    """The kinds of thing that `model.source` can name."""

    starter = "starter"
    hub = "hub"
    folder = "folder"
    gguf = "gguf"


def kind_of(source: str) -> SourceKind:
    """Return the kind of thing that `source` names; raises ValueError when it is none."""
    path = Path(source).expanduser()
    if source == "starter":
        return SourceKind.starter
    if path.is_dir():
        return SourceKind.folder
    if path.is_file() or path.suffix == ".gguf":
        require(path.is_file(), "model.source", "an existing file", source)
        require(path.suffix == ".gguf", "model.source", "a folder or a .gguf file", source)
        return SourceKind.gguf
    require(
        not source.startswith((".", "/", "~")),
        "model.source",
        "an existing folder or .gguf file",
        source,
    )
    rule = "`starter`, a hub id (owner/name), a folder or a .gguf file"
    require(_HUB_ID.fullmatch(source) is not None, "model.source", rule, source)
    return SourceKind.hub


def check(config: ModelConfig) -> None:
    """Raise ValueError for what can be known without the network and without reading weights."""
    kind = kind_of(config.source)
    path = Path(config.source).expanduser()
    if config.revision is not None and kind is not SourceKind.hub:
        raise ValueError(
            f"model.revision must be unset unless model.source is a hub id, got {config.revision}"
        )
    if kind is SourceKind.folder:
        check_folder(path)
    elif kind is SourceKind.gguf:
        with path.open("rb") as file:
            require(
                file.read(4) == b"GGUF",
                "model.source",
                "a GGUF file (magic bytes `GGUF`)",
                config.source,
            )


def check_reachable(config: ModelConfig, *, say: Say) -> None:
    """Do what `check` does, and refuse an id that is not cached when the hub does not answer.

    A cached one is then used without the network, which `say` hears of.
    """
    check(config)
    if kind_of(config.source) is SourceKind.hub:
        require_reachable(config.source, revision=config.revision or "main", say=say)


def with_adapter_shape(config: ModelConfig) -> ModelConfig:
    """Return `config` with the shape of the adapter that trains on as `model.lora`.

    Raises:
        ValueError: `model.lora` asks for another shape, or the adapter cannot be read.
    """
    if config.adapter is None:
        return config
    found = read_adapter_config(Path(config.adapter).expanduser())
    if config.adapter_use is not AdapterUse.train:
        return config
    found = replace(found, dtype=config.lora.dtype)
    if config.lora not in (found, LoRAConfig(dtype=config.lora.dtype)):
        raise ValueError(
            f"model.lora must be left as it is with model.adapter, whose shape is {found}, got "
            f"{config.lora}"
        )
    return replace(config, lora=found)


def locate(config: ModelConfig, *, say: Say) -> str:
    """Return the folder in Hugging Face format, or the hub id, that holds the model.

    It unpacks the starter model and converts a GGUF file, once.
    """
    check_reachable(config, say=say)
    kind = kind_of(config.source)
    cache = cache_root(config.cache_dir)
    if kind is SourceKind.hub:
        return config.source
    if kind is SourceKind.folder:
        return str(Path(config.source).expanduser())
    if kind is SourceKind.starter:
        folder = starter_folder(cache, say=say)
    else:
        folder = convert_gguf(Path(config.source).expanduser().resolve(), cache, say=say)
    try:
        check_folder(folder)
    except ValueError as error:
        raise ValueError(f"{error}; it is made again once you delete it") from error
    return str(folder)


def revision_of(config: ModelConfig) -> str | None:
    """Return the revision to load from the hub; None for what lies on this machine."""
    if kind_of(config.source) is not SourceKind.hub:
        return None
    return config.revision or "main"


def load_options(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of every `from_pretrained` of transformers beside the location."""
    revision = revision_of(config)
    options: dict[str, Any] = {"trust_remote_code": config.allow_remote_code}
    return options if revision is None else options | {"revision": revision}


def architecture_at(location: str, config: ModelConfig) -> PreTrainedConfig:
    """Return the Hugging Face config of the model at `location`; its weights are not read.

    Raises ValueError, with one line, when there is none or its family is not supported.
    """
    from transformers import AutoConfig

    with readable(config):
        found: PreTrainedConfig = AutoConfig.from_pretrained(location, **load_options(config))
    check_family(found.model_type, source=config.source)
    return found


@contextlib.contextmanager
def readable(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers raises on a broken model into one line that names the source."""
    try:
        yield
    except ValueError:
        raise  # ours, or one that says what is wrong
    except _BROKEN as error:
        is_hub = kind_of(config.source) is SourceKind.hub
        rule = "an existing folder or a hub id that can be reached" if is_hub else "a model folder"
        # Its own first line names a validator; the reason is the error of that.
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        reason = first_line(cause or error)
        raise ValueError(f"model.source must be {rule}, got {config.source}: {reason}") from error


def cache_root(cache_dir: str | None) -> Path:
    """Return the folder for converted models: `cache_dir`, or the user's cache folder (XDG)."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlkit"
