"""Read the configuration of another library from a file, without importing or running anything."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml


class Origin(StrEnum):
    """The library that a file belongs to."""

    trl = "trl"
    verl = "verl"


_PREFIX = {"GRPOConfig": "", "LoraConfig": "peft."}
_OF_VERL = ("actor_rollout_ref.", "algorithm.", "data.", "trainer.", "critic.")


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a file, nested ones joined by dots, and what could not be read.

    Args:
        path: A .json or .yaml file; a .py file with a call of `GRPOConfig`; or a .sh file with a
            command of verl.

    Raises:
        ValueError: The file is missing, is of another kind, or cannot be parsed.
    """
    if not path.is_file():
        raise ValueError(f"FILE must be a file, got {path}")
    text = path.read_text()
    try:
        if path.suffix == ".py":
            return of_python(text)
        if path.suffix == ".sh":
            return of_command(text), []
        loaded = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"FILE must be readable, got {path}: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"FILE must hold keys and values, got {path}")
    return dict(flat(loaded)), []


def origin_of(values: Mapping[str, Any]) -> Origin:
    """Return which library the keys belong to: verl's are nested below known names."""
    return Origin.verl if any(key.startswith(_OF_VERL) for key in values) else Origin.trl


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) of nested mappings; an empty mapping is a value."""
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{full}.")
        else:
            yield full, value


def of_python(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the literal arguments of `GRPOConfig(...)` and `LoraConfig(...)`, and the others."""
    found: dict[str, Any] = {}
    unread = []
    for node in ast.walk(ast.parse(text)):
        name = getattr(
            getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", "")
        )
        if not isinstance(node, ast.Call) or name not in _PREFIX:
            continue
        for argument in node.keywords:
            key = f"{_PREFIX[name]}{argument.arg}"
            try:
                found[key] = ast.literal_eval(argument.value)
            except ValueError:
                unread.append(f"{key} = {ast.unparse(argument.value)}: not a literal value")
    if not found and not unread:
        raise ValueError("there is no call of GRPOConfig with keywords")
    return found, unread


def of_command(text: str) -> dict[str, Any]:
    """Return the `key=value` words of a shell script that starts verl."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    pairs = [
        word.lstrip("+~").partition("=")
        for word in words
        if "=" in word and "." in word.split("=")[0]
    ]
    return {key: yaml.safe_load(value) for key, _, value in pairs}
