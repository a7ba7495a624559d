"""The content of data, reward and model files is part of a run's identity, as their names are.

`content.json` in the run's folder has the hash of each file that the configuration names. A resumed
run, and a sweep that runs again, compare it with what is there now.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.config import Config, ConfigError, flatten
from rlkit.launch.sources import imported_files, source_file
from rlkit.launch.weights import weights_digest
from rlkit.tracking.files import write_atomic

_FILE = "content.json"
_REWARD = re.compile(r"reward\.functions\.[^.]+\.fn")
_SCORERS = re.compile(r"reward\.functions\.[^.]+\.options\.(prompt|source)")
_ALGORITHM = "algorithm.fn"
_DATA = ("task.path", "task.eval_path")
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
_ADAPTER_SUFFIXES = (".json", ".safetensors")
_MODEL_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Files of a model that are read whole; of its weights, names and sizes must do."""


class Content(NamedTuple):
    """This record holds the hash of one file or folder that a configuration names."""

    path: str
    sha256: str


def content_of(config: Config) -> dict[str, Content]:
    """Return the local files that `config` names, by key.

    Names of the hub and of packages have none. The weights of a model and the files that a user's
    code imports have keys of their own, which records of older versions lack.
    """
    found = {}
    for key, path in named_files(config):
        found[key] = Content(str(path), _digest(key, path))
        if key == "model.source" and (weights := _weights(path)):
            found[f"{key} (weights)"] = Content(str(path), weights)
    for key, file in code_files(config):
        if imported := imported_files(file):
            shown = ", ".join(path.name for path in imported)
            found[f"{key} (imports)"] = Content(shown, _hash_imports(key, imported))
    return found


def check_content(now: Mapping[str, Content], run_dir: Path, *, accept: bool) -> list[str]:
    """Compare with what the run in `run_dir` began with, if it recorded that.

    Args:
        now: What `content_of` found.
        run_dir: The run's folder, which may not exist.
        accept: Whether a change is allowed.

    Returns:
        A line for each accepted change.

    Raises:
        ConfigError: A file has changed and `accept` is False; the message names it.
    """
    changes = []
    try:
        recorded = read_content(run_dir)
    except ConfigError as error:
        recorded, changes = {}, [str(error)]
    for key, before in recorded.items():
        found = now.get(key)
        if found is not None and found.sha256 != before.sha256:
            changes.append(
                f"{key} must hold what it held when the run in {run_dir} began, got a changed "
                f"{found.path} (SHA-256 {before.sha256[:12]} then, {found.sha256[:12]} now)"
            )
    if changes and not accept:
        hint = "accept_changed_files=true goes on all the same"
        raise ConfigError(f"{changes[0]}; {hint}")
    return changes


def write_content(run_dir: Path, content: Mapping[str, Content]) -> None:
    """Record what a run begins or goes on with, and the hashes that came before."""
    try:
        earlier, before = _read(run_dir), read_content(run_dir)
    except ConfigError:  # damaged, which `check_content` has said
        earlier, before = {}, {}
    changed = {key: before[key].sha256 for key in before if before[key] != content.get(key)}
    record = {
        "version": 1,
        "files": {key: found._asdict() for key, found in content.items()},
        "earlier": [*earlier.get("earlier", []), *([changed] if changed else [])],
    }
    write_atomic(run_dir / _FILE, (json.dumps(record, indent=2) + "\n").encode())


def read_content(run_dir: Path) -> dict[str, Content]:
    """Return the content that the run in `run_dir` recorded; empty for runs of older versions."""
    files = _read(run_dir).get("files", {})
    try:
        return {key: Content(str(f["path"]), str(f["sha256"])) for key, f in files.items()}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir / _FILE} must be the record of a run's files") from error


def hash_files(files: Sequence[tuple[str, Path]]) -> str:
    """Return the SHA-256 over the names and contents of files.

    A single nameless file has its own SHA-256.

    Raises OSError when one cannot be read.
    """
    digests = []
    for name, path in files:
        with path.open("rb") as stream:
            digests.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
    if len(digests) == 1 and not digests[0][0]:
        return digests[0][1]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def named_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the key and path of every local file or folder that `config` names."""
    for key, value in flatten(config).items():
        if not isinstance(value, str) or not value:
            continue
        named = key in (*_DATA, "model.source", "model.adapter") or _SCORERS.fullmatch(key)
        if named and Path(value).exists():
            yield key, Path(value)
        elif (_REWARD.fullmatch(key) or key == "environment.fn") and (
            file := source_file(value)
        ) is not None:
            yield key, file


def code_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the key and file of a user's code; an algorithm's own file is hashed in its options."""
    for key, value in flatten(config).items():
        if _REWARD.fullmatch(key) or key == _ALGORITHM:
            file = source_file(value) if isinstance(value, str) else None
            if file is not None:
                yield key, file


def _digest(key: str, path: Path) -> str:
    """Return the hash of one file, or of the files of a folder that matter."""
    try:
        if key == "model.source" or (key.endswith(".options.source") and path.is_dir()):
            return _model_digest(path)
        if path.is_file():
            return hash_files([("", path)])
        suffixes = _ADAPTER_SUFFIXES if key == "model.adapter" else _DATA_SUFFIXES
        found = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        return hash_files([(p.relative_to(path).as_posix(), p) for p in found])
    except OSError as error:
        raise ConfigError(f"{key} must be readable, got {path}: {error.strerror}") from error


def _weights(path: Path) -> str | None:
    try:
        return weights_digest(path)
    except OSError as error:
        raise ConfigError(f"model.source must be readable, got {path}: {error.strerror}") from error


def _hash_imports(key: str, files: Sequence[Path]) -> str:
    try:
        return hash_files([(file.name, file) for file in files])
    except OSError as error:
        raise ConfigError(f"{key} must import readable files, got {error}") from error


def _model_digest(path: Path) -> str:
    """Return the hash of a model's small files; weights count by name and size."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    sizes = [(p.name, p.stat().st_size) for p in files]
    small = [(p.name, p) for p in files if p.suffix in _MODEL_SUFFIXES]
    return hashlib.sha256(json.dumps([sizes, hash_files(small)]).encode()).hexdigest()


def _read(run_dir: Path) -> dict[str, Any]:
    file = run_dir / _FILE
    try:
        record = json.loads(file.read_text())
        if isinstance(record, dict) and isinstance(record.get("files"), dict):
            return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    raise ConfigError(f"{file} must be the record of a run's files")
