"""Bad values go to every leaf of every config dataclass, as words of the command line.

A value must be refused in one line that names the key, or be one that the leaf may hold. What a
leaf may hold follows here from its type and from the range in its docstring, not from the code that
checks it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from hydra import initialize_config_module

from benchmarks.faults.row import Row
from rlkit.config import Config, ConfigError, schemas
from rlkit.launch.composing import Composer, register
from rlkit.launch.preflight import check_job
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.optim import OptimConfig

LONG = 100_000
DEEP = 300
BAD: Mapping[str, str] = {
    "none": "null",
    "not given": "???",
    "infinity": "inf",
    "minus infinity": "-inf",
    "not a number": "nan",
    "-1": "-1",
    "0": "0",
    "1.5": "1.5",
    "1e30": "1e30",
    "10^30": "1" + "0" * 30,
    "-10^30": "-1" + "0" * 30,
    "a boolean": "true",
    "yes": "yes",
    "a word": "abc",
    "an empty text": "''",
    "a long text": "x" * LONG,
    "an escape sequence": "'a\x1b[31mb'",
    "a null character": "'a\x00b'",
    "a surrogate": "'\udcff'",
    "an empty list": "[]",
    "a list": "[1,[2,{a:3}]]",
    "an empty mapping": "{}",
    "a deep nest": "[" * DEEP + "]" * DEEP,
    "a reference to the environment": "${oc.env:PATH}",
    "a reference to nothing": "${oc.env:RLKIT_NO_SUCH_VARIABLE}",
}
"""Values by name, as the command line writes them."""
_NUMBERS = {"-1": -1, "0": 0, "1.5": 1.5, "1e30": 1e30, "10^30": 10**30, "-10^30": -(10**30)}
_NEVER = ("not given", "a reference to nothing", "a deep nest", "a list")
_TEXTS = ("a long text", "an escape sequence", "a null character", "a surrogate")
_CONTAINERS = ("an empty list", "an empty mapping")
_FEATURES = {"base": "default", "model": "smollm2"}
_GROUP_CHOICE = {"kl": "reverse_k3", "ratio": "token", "correction": "none"}


class Leaf(NamedTuple):
    """This is one leaf of a configuration, with what its dataclass says of it."""

    base: tuple[str, ...]
    """The words that make the leaf part of the configuration."""
    key: str
    kinds: tuple[Any, ...]
    doc: str
    defaults: tuple[object, ...]
    """Its defaults, in its class and in those that this extends."""


def leaves() -> list[Leaf]:
    """Return every leaf once: what several classes inherit is that of the first one."""
    found: dict[tuple[str, str], Leaf] = {}
    for base, key, node in _nodes():
        for leaf in _leaves(base, key, node):
            found.setdefault((leaf.key, leaf.doc), leaf)
    return list(found.values())


def _nodes() -> Iterator[tuple[tuple[str, ...], str, type]]:
    yield (), "", Config
    for schema in schemas():
        if schema.name == "tabular":
            yield ("model=tabular", "task=tabular", "generator=tabular"), schema.group, schema.node
        else:
            name = _GROUP_CHOICE.get(schema.group) or _FEATURES.get(schema.name, schema.name)
            yield (f"{schema.group}={name}",), schema.group, schema.node
    yield (), "optim", OptimConfig
    yield (), "memory", MemoryConfig


def _leaves(base: tuple[str, ...], prefix: str, node: type) -> Iterator[Leaf]:
    hints, docs = typing.get_type_hints(node), _docs(node)
    for field in fields(node):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,)
        key = f"{prefix}.{field.name}" if prefix else field.name
        nested = next((kind for kind in kinds if is_dataclass(kind)), None)
        if nested is not None and prefix:
            assert isinstance(nested, type)
            yield from _leaves(base, key, nested)
        elif nested is None:
            parents = [c for c in node.__mro__ if is_dataclass(c)]
            defaults = [f.default for c in parents for f in fields(c) if f.name == field.name]
            yield Leaf(base, key, kinds, docs.get(field.name, ""), tuple(defaults))


@cache
def _docs(node: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, and of those that it extends."""
    docs: dict[str, str] = {}
    for parent in reversed([c for c in node.__mro__ if is_dataclass(c)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[ast.unparse(before.target)] = str(ast.literal_eval(after.value))
    return docs


def may_hold(leaf: Leaf, name: str) -> bool:
    """Return whether the leaf may hold the bad value of this name, by its type and docstring."""
    if name in _NEVER:
        return False
    if name == "none":
        return NoneType in leaf.kinds
    (kind,) = (k for k in leaf.kinds if k is not NoneType)
    origin = typing.get_origin(kind) or kind
    if origin in (list, dict) or kind is Any:
        return name in _CONTAINERS
    if name in _CONTAINERS:
        return False
    if origin is bool:
        return name == "a boolean"
    if origin is str:
        return name not in _TEXTS and (name != "an empty text" or "" in leaf.defaults)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return False
    if name == "infinity":
        return "inf with" in leaf.doc
    whole = origin is int
    number = _NUMBERS.get(name)
    return number is not None and not (whole and isinstance(number, float)) and _fits(leaf, number)


def _fits(leaf: Leaf, number: float) -> bool:
    """Return whether a number is in the range that the docstring states; beyond 1e9, none is."""
    doc = leaf.doc.replace("\n", " ")
    if abs(number) > 1e9:
        return False
    if found := re.search(r"[iI]n ([\[(])([-\d.e]+), ([-\d.e*]+)([])])", doc):
        opens, low, high, closes = found.groups()
        above = number >= float(low) if opens == "[" else number > float(low)
        most = float(2**31) if "**" in high else float(high)
        return above and (number <= most if closes == "]" else number < most)
    if found := re.search(r">(=?) ([\d.]+)", doc):
        equal, low = found.groups()
        return number >= float(low) if equal else number > float(low)
    return True


def outcome(leaf: Leaf, name: str, composer: Composer) -> str:
    """Return what is wrong with how the leaf takes this value; empty when nothing is."""
    run_dir = () if leaf.key == "run_dir" else ("run_dir=unused",)
    try:
        check_job([*run_dir, *leaf.base, f"{leaf.key}={BAD[name]}"], composer)
    except ConfigError as error:
        return _badly_said(str(error), leaf.key)
    except BaseException as error:  # whatever it is, a user would see its traceback
        return f"{type(error).__name__}: {error!s:.200}"
    return "" if may_hold(leaf, name) else "accepted"


def _badly_said(message: str, key: str) -> str:
    names = (key, "no effect", "must be left as it is")
    known = any(name in message for name in names)
    short = len(message) < 1000 and message.isprintable()
    return "" if known and short else f"refused, but: {message[:200]!r}"


def problems(names: Mapping[str, tuple[str, ...]]) -> tuple[int, list[str]]:
    """Try values on leaves; return how many, and a line for each that is taken badly.

    Args:
        names: Names of values by the key of the leaf; "" stands for all others.
    """
    register()
    tried, wrong = 0, []
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        composer = Composer()
        for leaf in leaves():
            for name in names.get(leaf.key, names[""]):
                tried += 1
                if said := outcome(leaf, name, composer):
                    wrong.append(f"{leaf.key}={name} ({' '.join(leaf.base)}): {said}")
    return tried, wrong


def run(count: int, folder: Path) -> Row:
    """Try values on every leaf: all of them, or `count` of the table's for each; 0 = all."""
    names = tuple(BAD)[: count or None]
    tried, wrong = problems({"": names})
    said = "; ".join(wrong[:5]) or "each refused in one line that names the option"
    note = f"{len(leaves())} leaves x {len(names)} values, on the command line; {said}"
    return Row("F13 bad values on every config leaf", tried, tried - len(wrong), len(wrong), note)
