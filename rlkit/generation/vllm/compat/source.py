"""Names are looked up in the source text of vLLM, so that a version can be judged without a GPU.

A table has one line for each class or function. `FILE CLASS: a b` wants attributes or methods `a`
and `b` of a class. `FILE CLASS.method(a, b)` or `FILE function(a, b)` wants a function that takes
the parameters `a` and `b` and needs no others. `FILE: a b` wants names at the top of a file.
A line that is indented goes on with the line before it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

_CALL = re.compile(r"(?P<file>\S+) (?P<path>[\w.]+)\((?P<names>[^)]*)\)")
_NAMES = re.compile(r"(?P<file>[^\s:]+)(?: (?P<path>\w+))?: (?P<names>.+)")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class TableLine(NamedTuple):
    """This is one line of a table, taken apart."""

    file: str
    path: tuple[str, ...]
    """Class and method, or one of them; empty for the top of the file."""
    names: tuple[str, ...]
    is_call: bool


def missing(root: Path, table: str) -> list[str]:
    """Find what `table` names and the source tree at `root` (the folder `vllm`) does not have."""
    return [gap for line in read_table(table) for gap in _gaps(root, line)]


def read_table(table: str) -> list[TableLine]:
    """Take a table apart; raises ValueError for a line of another form."""
    lines = []
    for text in filter(None, map(str.strip, re.sub(r"\n[ ]+", " ", table).splitlines())):
        call = _CALL.fullmatch(text)
        match = call or _NAMES.fullmatch(text)
        if match is None:
            raise ValueError(f"a line of a table must be `FILE CLASS: NAMES` or a call, got {text}")
        names = match["names"].replace(",", " ").split()
        path = tuple((match["path"] or "").split(".")) if match["path"] else ()
        lines.append(TableLine(match["file"], path, tuple(names), call is not None))
    return lines


def _gaps(root: Path, line: TableLine) -> Iterator[str]:
    tree = _tree(root / line.file)
    where = ".".join((line.file.removesuffix(".py").replace("/", "."), *line.path))
    if tree is None:
        yield line.file
        return
    node: ast.AST = tree
    for name in line.path:
        member = _member(node, name)
        if member is None:
            yield where
            return
        node = member
    if line.is_call:
        if not isinstance(node, _Function):
            yield where
            return
        known, needed = _parameters(node)
        yield from (f"{where}({name})" for name in line.names if name not in known)
        yield from (f"{where}(..., {name})" for name in needed if name not in line.names)
    else:
        held = _held(node)
        yield from (f"{where}.{name}" for name in line.names if name not in held)


@cache
def _tree(file: Path) -> ast.Module | None:
    return ast.parse(file.read_text()) if file.is_file() else None


def _member(node: ast.AST, name: str) -> ast.AST | None:
    """Find a class or a function by name; the last definition counts, as in Python."""
    found = [
        child
        for child in ast.walk(node)
        if isinstance(child, ast.ClassDef | _Function) and child.name == name
    ]
    return found[-1] if found else None


def _held(node: ast.AST) -> set[str]:
    """Collect what a class or a file defines: functions, fields, and what methods set on self."""
    held: set[str] = set()
    body: list[ast.stmt] = getattr(node, "body", [])
    for child in body:
        if isinstance(child, ast.ClassDef | _Function):
            held.add(child.name)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign):
            targets = inner.targets
        elif isinstance(inner, ast.AnnAssign | ast.AugAssign):
            targets = [inner.target]
        else:
            continue
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    if part.value.id == "self":
                        held.add(part.attr)
                elif isinstance(part, ast.Name):
                    held.add(part.id)
    return held


def _parameters(node: _Function) -> tuple[set[str], list[str]]:
    """List all parameters, and those without a default; `self` and `cls` are left out."""
    arguments = node.args
    ordered = [*arguments.posonlyargs, *arguments.args]
    plain = ordered[: len(ordered) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    needed = [*plain, *(name for name, default in named if default is None)]
    own = {"self", "cls"}
    known = {name.arg for name in [*ordered, *arguments.kwonlyargs]} - own
    return known, [name.arg for name in needed if name.arg not in own]
