"""Every leaf of a configuration has a finite range: of numbers, of lengths, of depth.

The dataclasses' own rules come first, in their `__post_init__`. This module refuses what is left:
values that no run can mean, and which would end in a traceback or in a start without an end.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.schema import ANY_LENGTH, BETWEEN, Between, is_control, require

DEPTH = 16
"""The deepest nest of lists and mappings."""
_ITEMS = 10_000
_FREE = Between(-(2.0**63), 2.0**63)
"""The range of numbers in containers that hold anything, such as options of a reward."""


class Leaf(NamedTuple):
    """These are the types of a leaf and its range, as its dataclass declares them."""

    kinds: tuple[type, ...]
    """Its type, and NoneType where it may be null; empty where it may hold anything."""
    between: Between | None
    may_be_empty: bool
    """An empty text means something: it is the default, here or in a parent class."""


@functools.cache
def leaves_of(schema: Any) -> Mapping[str, Leaf]:
    """Return the fields of a config dataclass by name."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {f.name: _leaf(schema, f.name, hints[f.name]) for f in fields(schema)}


def _leaf(schema: type, name: str, hint: Any) -> Leaf:
    between = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        between = next((extra for extra in extras if isinstance(extra, Between)), None)
    union = typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in union if kind is not Any)
    empties = (_default(parent, name) == "" for parent in schema.__mro__ if is_dataclass(parent))
    return Leaf(kinds, between, any(empties))


def _default(schema: type, name: str) -> object:
    found = (f.default for f in fields(schema) if f.name == name)
    return next(found, NO_DEFAULT)


def check_shape(node: DictConfig, *, prefix: str = "") -> None:
    """Refuse what OmegaConf would stumble over: nothing given, bad references, wrong containers.

    Args:
        node: A composed configuration, or a part of it.
        prefix: The full key of the part, with a dot at its end.

    Raises:
        ValueError: A value is missing or has a wrong shape; the message names key, rule and value.
    """
    schema = OmegaConf.get_type(node)
    known = leaves_of(schema) if is_dataclass(schema) else {}
    written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(written, dict)
    for name in (*map(str, node), *(name for name in known if name not in node)):
        key, leaf = prefix + name, known.get(name)
        given = name in written and not OmegaConf.is_missing(node, name)
        require(given, key, "given", "nothing")
        raw = written[name]
        if leaf is not None and any(map(is_dataclass, leaf.kinds)):
            require(not OmegaConf.is_interpolation(node, name), key, "a group of options", raw)
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{key} must refer to a value that fits, got {raw}: {reason}"
            ) from error
        if leaf is not None:
            require(dict not in leaf.kinds or isinstance(value, DictConfig), key, "a mapping", raw)
            require(list not in leaf.kinds or isinstance(value, ListConfig), key, "a list", raw)
        if isinstance(value, DictConfig):
            check_shape(value, prefix=f"{key}.")
        elif isinstance(value, ListConfig):
            _check_list(node, name, key, value)


def _check_list(node: DictConfig, name: str, key: str, value: ListConfig) -> None:
    wanted = typing.get_type_hints(OmegaConf.get_type(node)).get(name)
    if typing.get_args(wanted) == (str,):
        odd = [item for item in value if not isinstance(item, str)]
        require(not odd, key, "a list of texts", value)


def check_ranges(options: Any, *, prefix: str = "") -> None:
    """Refuse a leaf outside its range.

    Args:
        options: A configuration object, or a part of it.
        prefix: The full key of the part, with a dot at its end.

    Raises:
        ValueError: A leaf is out of range; the message names its key, the rule and the value.
    """
    schema: Any = type(options)
    for name, leaf in leaves_of(schema).items():
        value, key = getattr(options, name), prefix + name
        if is_dataclass(value):
            check_ranges(value, prefix=f"{key}.")
        elif isinstance(value, Mapping | list | tuple):
            _check_container(key, value, leaf.between, depth=0)
        else:
            _check_value(key, value, leaf.between)
            rule = "null or a text with something in it" if NoneType in leaf.kinds else "not empty"
            require(value != "" or leaf.may_be_empty, key, rule, "''")


def _check_container(key: str, value: Any, between: Between | None, *, depth: int) -> None:
    require(depth < DEPTH, key, f"nested at most {DEPTH} deep", "more")
    require(len(value) <= _ITEMS, key, f"of at most {_ITEMS} entries", f"{len(value)}")
    for part, item in _items(value):
        _check_value(key, part, None)
        if is_dataclass(item):
            check_ranges(item, prefix=f"{key}.{part}.")
        elif isinstance(item, Mapping | list | tuple):
            _check_container(key, item, between, depth=depth + 1)
        else:
            _check_value(key, item, between or (ANY_LENGTH if isinstance(item, str) else _FREE))


def _items(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    else:
        yield from ((None, item) for item in value)


def _check_value(key: str, value: object, between: Between | None) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, str):
        low, high = between or BETWEEN[str]
        rule = f"of at most {high} characters"
        require(low <= len(value) <= high, key, rule, f"{value[:40]}... ({len(value)})")
        require(not any(map(is_control, value)), key, "free of control characters", value)
    elif isinstance(value, int | float):
        between = between or BETWEEN[int if isinstance(value, int) else float]
        inside = not math.isnan(value) and between.low <= value <= between.high
        require(inside, key, str(between), value)
