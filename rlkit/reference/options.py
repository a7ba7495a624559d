"""`python -m rlkit.reference.options` prints a page with every key of a run's configuration.

Type, range, default and meaning come from the dataclasses themselves, so that the page cannot say
anything else than the code. `make docs` puts it into the site.
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

from omegaconf import MISSING as REQUIRED

import rlkit
from rlkit.algorithms import AlgorithmConfig
from rlkit.config import Config, schemas
from rlkit.generation import GeneratorConfig
from rlkit.launch.settings import IsolatedConfig
from rlkit.oracle.table import field_docs
from rlkit.rewards.config import RewardFunctionConfig
from rlkit.schema import BETWEEN, Between
from rlkit.tasks import TaskConfig
from rlkit.tracking import TrackerConfig

_ROOT = Path(rlkit.__file__).resolve().parent.parent
_BASES: dict[str, type] = {
    "task": TaskConfig,
    "generator": GeneratorConfig,
    "algorithm": AlgorithmConfig,
    "tracker": TrackerConfig,
}
"""Groups whose options share fields; each of their options adds some."""


class OptionRow(NamedTuple):
    """A leaf is one key that a user can set."""

    key: str
    kind: str
    """Type and range, as the page shows them."""
    default: str
    meaning: str


def leaves(key: str, config: type) -> Iterator[OptionRow]:
    """Yield every leaf of a config dataclass, those of nested ones included.

    Args:
        key: The dataclass's own key, such as `model.lora`; empty for the root.
        config: A config dataclass.

    Yields:
        Its leaves, in the order of their fields.
    """
    docs = {k: v for base in reversed(config.__mro__[:-1]) for k, v in _docs(base).items()}
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        full = f"{key}.{field.name}" if key else field.name
        hint = hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            if not _is_group(hint):
                yield from leaves(full, hint)
        else:
            meaning = docs.get(field.name) or _meaning_of_values(hint)
            yield OptionRow(full, kind_of(hint), default_of(field), meaning)


def kind_of(hint: Any) -> str:
    """Return the type and the range of a leaf in words: `number in [0, 10]`, `auto, on, off`."""
    if typing.get_origin(hint) is Annotated:
        inner, *extra = typing.get_args(hint)
        bounds = [e for e in extra if isinstance(e, Between)]
        return _word(inner, bounds[0] if bounds else None)
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return f"{', '.join(map(kind_of, inner))} or null"
    return _word(hint, None)


def _word(hint: Any, bounds: Between | None) -> str:
    """Return a type in a reader's words."""
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return ", ".join(hint)
    if typing.get_origin(hint) is list:
        return f"list of {_plural(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "mapping by name"
    if hint is bool:
        return "true, false"
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return f"{', '.join(_word(a, bounds) for a in inner)} or null"
    if hint is str:
        return "text"
    word = {int: "integer", float: "number"}.get(hint, getattr(hint, "__name__", str(hint)))
    return f"{word} {bounds}" if bounds is not None and bounds != BETWEEN.get(hint) else word


def _plural(hint: Any) -> str:
    return {str: "texts", float: "numbers", int: "integers"}.get(hint, "values")


def default_of(field: Field[Any]) -> str:
    """Return a default as one writes it on the command line."""
    value = field.default
    if value is MISSING and field.default_factory is not MISSING:
        value = field.default_factory()
    if value == REQUIRED or value is MISSING:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, StrEnum):
        return value.value
    if value is None:
        return "null"
    return "empty" if value == "" else str(value)


def _docs(config: type) -> dict[str, str]:
    return field_docs(config) if is_dataclass(config) else {}


def _meaning_of_values(hint: Any) -> str:
    """Return what the values of an enumeration mean, for a field that has no text of its own."""
    if not (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return ""
    head = " ".join((inspect.getdoc(hint) or "").split("\n\n")[0].split())
    (node,) = ast.parse(inspect.getsource(hint)).body
    assert isinstance(node, ast.ClassDef)
    said = [
        f"`{value.targets[0].id}`: {' '.join(str(text.value.value).split())}"
        for value, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(value, ast.Assign)
        and isinstance(value.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    ]
    return " ".join([head, *said])


def _is_group(config: type) -> bool:
    """Return whether a dataclass belongs to a group, which has a section of its own."""
    return any(issubclass(s.node, config) or issubclass(config, s.node) for s in schemas())


def every_leaf() -> dict[str, list[OptionRow]]:
    """Return the leaves by section: `run`, `model`, `task`, `task=gsm8k`, ..."""
    found: dict[str, list[OptionRow]] = {"run": []}
    for leaf in leaves("", Config):
        part = leaf.key.partition(".")[0] if "." in leaf.key else "run"
        found.setdefault(part, []).append(leaf)
    for group, base in _BASES.items():
        found[group] = list(leaves(group, base))
    for schema in schemas():
        if schema.group in _BASES:
            shared = set(found[schema.group])
            own = [leaf for leaf in leaves(schema.group, schema.node) if leaf not in shared]
            if own:
                found[f"{schema.group}={schema.name}"] = own
        elif schema.name != "tabular":
            found[schema.group] = list(leaves(schema.group, schema.node))
        else:
            found[f"{schema.group}={schema.name}"] = list(leaves(schema.group, schema.node))
    found["reward.functions.NAME"] = list(leaves("reward.functions.NAME", RewardFunctionConfig))
    found["hydra/launcher=isolated"] = list(leaves("hydra.launcher", IsolatedConfig))
    return found


def _nodes() -> dict[str, type]:
    """Return the dataclass of every section."""
    hints = typing.get_type_hints(Config)
    of_run = {name: node for name, node in hints.items() if is_dataclass(node)}
    of_groups = {
        (
            s.group if s.group not in _BASES and s.name != "tabular" else f"{s.group}={s.name}"
        ): s.node
        for s in schemas()
    }
    return {
        **of_run,
        **of_groups,
        **_BASES,
        "run": Config,
        "reward.functions.NAME": RewardFunctionConfig,
        "hydra/launcher=isolated": IsolatedConfig,
    }


def document() -> str:
    """Return the page."""
    nodes = _nodes()
    parts = []
    for section, found in every_leaf().items():
        node = nodes[section]
        source = Path(inspect.getsourcefile(node) or "").resolve().relative_to(_ROOT)
        head = " ".join((inspect.getdoc(node) or "").split("\n\n")[0].split())
        parts += [f"## {section}\n", f"{head}\n", f"Source: `{node.__name__}` in `{source}`.\n"]
        parts += [_table(found), ""]
    return "\n".join(parts)


def _table(found: Sequence[OptionRow]) -> str:
    lines = ["| key | type and range | default | meaning |", "| --- | --- | --- | --- |"]
    for leaf in found:
        cells = (f"`{leaf.key}`", leaf.kind, f"`{leaf.default}`", leaf.meaning)
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document())
