"""Modules made as if they were not installed; for scripts that are processes of their own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec


class _Hidden:
    """A finder that comes first and finds nothing for some names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, *_others: object) -> ModuleSpec | None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def hide(names: Sequence[str]) -> None:
    """From here on no module of these top names can be imported or found."""
    sys.meta_path.insert(0, _Hidden(names))
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in names else find(name, package)

    importlib.util.find_spec = find_spec  # libraries ask it what is installed
