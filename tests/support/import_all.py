"""Imports every module of rlkit: `python tests/support/import_all.py [MODULE ...]`.

The modules that are named are hidden first, as if they were not installed. Fails unless each
module of rlkit can be imported, or says in one line which extra it needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hidden import hide


def main(hidden: Sequence[str]) -> int:
    """The number of modules that fail without naming an extra, each printed."""
    hide(hidden)
    import rlkit
    from rlkit.runtime.distribution import NAME

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
