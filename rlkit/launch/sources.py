"""A user's code is more than the file that an option names: what it imports belongs to it."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import rlkit


def source_file(target: str) -> Path | None:
    """Return the file behind `package.module:function` or `path/to/file.py:function`.

    The module is not imported.

    None when there is none, as for a registered name or a compiled module.
    """
    module, colon, _ = target.rpartition(":")
    if not colon:
        return None
    if module.endswith(".py"):
        return Path(module) if Path(module).is_file() else None
    return _find(module, [*sys.path, str(Path.cwd())])


def imported_files(file: Path) -> list[Path]:
    """Return the files that `file` imports, and those that they import, sorted.

    Installed packages, rlkit and the standard library are left out: their versions say enough.
    Imports by a name that is made at run time are not seen.
    """
    found: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        for name in _imports(path):
            origin = _find(name, [str(path.parent), str(file.parent), *sys.path, str(Path.cwd())])
            other = origin.resolve() if origin else None
            if other and other not in found and other != file.resolve() and _is_users(other):
                found.add(other)
                waiting.append(other)
    return sorted(found)


def _imports(file: Path) -> Iterator[str]:
    """Yield the names of modules that the code of `file` may import."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # its import will say so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import is looked for beside the file, as the package's folder is there.
            module = node.module or ""
            yield from filter(None, [module])
            yield from (f"{module}.{a.name}".lstrip(".") for a in node.names if a.name != "*")


def _find(module: str, places: Sequence[str] | None) -> Path | None:
    origin: str | None = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        origin, places = spec.origin, spec.submodule_search_locations or []
    return Path(origin) if origin and Path(origin).is_file() else None


def _is_users(file: Path) -> bool:
    installed = {Path(p).resolve() for p in sysconfig.get_paths().values()}
    installed.add(Path(rlkit.__file__).resolve().parent)
    folders = file.parents
    elsewhere = any(folder.name in ("site-packages", "dist-packages") for folder in folders)
    return file.suffix == ".py" and not elsewhere and not installed & set(folders)
