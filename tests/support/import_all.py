"""Imports every module of rlkit: `python tests/support/import_all.py [MODULE ...]`.

The modules that are named are hidden first, as if they were not installed. Fails unless each
module of rlkit can be imported, or says in one line which extra it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path


class _Hidden:
    """A finder that comes first and finds nothing for some names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, *_others: object) -> ModuleSpec | None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def main(hidden: Sequence[str]) -> int:
    """The number of modules that fail without naming an extra, each printed."""
    sys.meta_path.insert(0, _Hidden(hidden))
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in hidden else find(name, package)

    importlib.util.find_spec = find_spec  # libraries ask it what is installed
    import rlkit
    from rlkit.distribution import NAME

    root = Path(next(iter(rlkit.__path__)))
    files = sorted(p for p in _python_files(root))
    names = [".".join(("rlkit", *p.relative_to(root).with_suffix("").parts)) for p in files]
    failed = refused = 0
    for name in (n.removesuffix(".__init__") for n in names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            text = str(error)
            refused += 1
            if f"pip install '{NAME}[" not in text or "\n" in text:
                print(f"{name}: {type(error).__name__}: {text}")
                failed += 1
    print(f"{len(files)} modules, {refused} of them need an extra, {failed} without saying which")
    return failed


def _python_files(folder: Path) -> list[Path]:
    """With the packages that are symbolic links, which `Path.rglob` does not enter."""
    found: list[Path] = []
    for child in folder.iterdir():
        if child.is_dir() and child.name != "__pycache__":
            found += _python_files(child)
        elif child.suffix == ".py":
            found.append(child)
    return found


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
