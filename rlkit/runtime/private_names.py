"""This module checks that another library still has the private names that rlkit takes from it.

Each such library has one module that takes them: `rlkit.models.compat` (transformers),
`rlkit.runtime.torch_compat`, `rlkit.launch.hydra_compat` and the folder `rlkit.generation.vllm`.
`tests/test_private_names.py` lists every name and fails when one appears elsewhere.
"""

from __future__ import annotations

import importlib
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class MissingName(ImportError):
    """A library lacks a name that rlkit cannot work without; the message is one line."""


def find(place: str) -> Any | None:
    """Return the object at `module:attribute.attribute`, or None when the library lacks it."""
    module, _, path = place.partition(":")
    try:
        return reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


def require_names(distribution: str, *places: str) -> None:
    """Raise MissingName unless every `module:attribute` of `places` exists.

    `distribution`: what pip calls the library; the message names it and its version.
    """
    for place in places:
        if find(place) is None:
            raise MissingName(lacking(distribution, place.replace(":", ".")))


def lacking(distribution: str, name: str) -> str:
    """Return one line that says which name of which library is missing, and where to look."""
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        installed = "without metadata"
    return (
        f"{distribution} must have {name}, got {distribution} {installed} without it: "
        f"docs/compatibility.md lists the versions that were tested"
    )
