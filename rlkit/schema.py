"""Packages share these facts about options: their schemas, and the code that options name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from types import MemberDescriptorType, ModuleType
from typing import NamedTuple


class Options:
    """A base of config dataclasses that makes each field read only once it is set.

    OmegaConf makes read-only nodes of `frozen=True`, which no override could change; this leaves
    its nodes open and closes the objects that come of them.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if _has_own(self, name):
            raise _read_only(self, name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise _read_only(self, name)


def _has_own(options: Options, name: str) -> bool:
    # Without slots, as in an algorithm from outside, the class itself has the defaults.
    if isinstance(getattr(type(options), name, None), MemberDescriptorType):
        return hasattr(options, name)
    return name in getattr(options, "__dict__", ())


def _read_only(options: Options, name: str) -> AttributeError:
    field = f"{type(options).__name__}.{name}"
    return AttributeError(f"{field} is read only after it is made: use dataclasses.replace")


NAMES = ("algorithm.preset",)
"""Leaves that only say what others are called."""
NEWER_OPTIONS: Mapping[str, object] = {
    "algorithm.advantage.turns": "trajectory",
    "environment.fn": "",
    "environment.options": {},
    "environment.max_turns": 8,
    "environment.max_turn_tokens": None,
    "environment.cut_turns": "end",
    "environment.history": "strict",
    "environment.admission": "rounds",
    "environment.timeout_s": 10.0,
    "environment.episode_timeout_s": 120.0,
    "environment.startup_timeout_s": 120.0,
    "environment.workers": 2,
    "environment.memory_mb": 2048,
    "algorithm.labels": "hard",
    "gpus": 1,
    "generator.rounds_at_once": 1,
    "generator.tensor_parallel": 1,
    "memory.weights": "whole",
    "generator.speculation.kind": "none",
    "generator.speculation.tokens": 3,
    "generator.speculation.shortest": 2,
    "generator.speculation.longest": 4,
    "generator.speculation.source": "group",
    "generator.speculation.rows": 64,
    "model.adapter": None,
    "model.adapter_use": "train",
    "model.rope_length": None,
    "model.chat_template_name": "",
    "model.chat_template_kwargs": {},
    "reward.max_failure_rate": 1.0,
    "reward.special_tokens": "drop",
    "reward.max_memory_bytes": 0,
    "task.bad_rows": "error",
    "task.ignore_keys": [],
    "task.target": "",
    "task.overlong_targets": "error",
    "task.stream": False,
    "init_from": None,
    "evaluation.tasks": {},
    "checkpoint.keep_every": 0,
}
"""Options that older runs did not have, with the value that means what those runs did. At this
value an option is no part of a run's identity, so that older runs resume and sweeps skip them."""


FORMER_DEFAULTS: Mapping[str, tuple[object, object]] = {
    "memory.tokens_per_microbatch": (None, 8192),
}
"""Options whose default has changed, with the new and the former value, neither of which changes a
number. The new one counts as the former in a run's identity, so that sweeps know their jobs."""


class Schema(NamedTuple):
    """A schema is a config dataclass for Hydra; YAML finds it as `/schema/{group}/{name}`."""

    group: str
    name: str
    node: type


class Between(NamedTuple):
    """This range bounds a leaf; of a text it bounds the length.

    A field declares it as `rank: Annotated[int, Between(1, 4096)]`. A leaf without one has the
    range of its type, `BETWEEN`.
    """

    low: float
    high: float

    def __str__(self) -> str:
        """Return the rule, as a message has it."""
        return f"in [{_number(self.low)}, {_number(self.high)}]"


BETWEEN: Mapping[type, Between] = {
    int: Between(-(2**31), 2**31 - 1),
    float: Between(-1e9, 1e9),
    str: Between(0, 4096),
}
"""The ranges of leaves that declare none: numbers that no run can mean are refused."""
ANY_LENGTH = Between(0, 2**16)
"""The length of texts such as a system message."""
BYTES = Between(0, 2**50)
"""Numbers of bytes."""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def require(
    holds: bool, key: str, rule: str, value: object, *, error: type[ValueError] = ValueError
) -> None:
    """Raise `key must be RULE, got VALUE` unless `holds`.

    Args:
        holds: Whether the option keeps its rule.
        key: The option's full name, as the user writes it.
        rule: What its value must be.
        value: What it is.
        error: The type of the error.

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise error(f"{key} must be {rule}, got {shown(value)}")


_WORD = re.compile(r"\S{161,}")
_INTEGER_BITS = 256


def shown(value: object) -> str:
    """Return `value` for a message: on one line, of readable length, without control characters."""
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        return f"an integer of {value.bit_length()} bits"  # its digits may take minutes
    return one_line(str(value))


def one_line(text: str) -> str:
    """Return `text` on one line: control characters escaped, words without end cut."""
    visible = "".join(map(_escaped, " ".join(text.splitlines())))
    return _WORD.sub(lambda m: f"{m[0][:80]}... ({len(m[0])} characters)", visible)


def _escaped(character: str) -> str:
    """Return a character that could steer a terminal, or cannot be encoded, as `\\x1b`."""
    if is_control(character):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


_DIRECTIONS = frozenset(["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"])


def is_control(character: str) -> bool:
    """Return whether a character steers terminals, turns the direction of text, or is a surrogate.

    Tabs and line ends do not count.
    """
    if character in "\t\n\r":
        return False
    if " " <= character <= "~":
        return False
    steers = unicodedata.category(character) in ("Cc", "Cs")
    return steers or unicodedata.bidirectional(character) in _DIRECTIONS


def content_hash(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_code(name: str, *, key: str, target: str) -> ModuleType:
    """Import `package.module` or `path/to/file.py`; a file can import its neighbours.

    Args:
        name: the module's name, or the path of its file.
        key: the option that asked for it, for the message.
        target: what that option says, for the message.

    Raises:
        ValueError: the import failed, with one line of why.
    """
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise ValueError(f"{key} must name an existing file, got {target}")
    try:
        return _import_file(Path(name)) if is_file else importlib.import_module(name)
    except Exception as error:
        # The user's code may raise anything while it is imported.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{key} must be importable, got {target}: {reason}") from error


def _import_file(path: Path) -> ModuleType:
    # Two files of one name in different folders are two modules.
    folder = hashlib.sha256(str(path.resolve().parent).encode()).hexdigest()[:8]
    name = f"rlkit_user_{path.stem}_{folder}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look modules up by name
    beside = str(path.resolve().parent)
    if beside not in sys.path:  # so that the file can import its neighbours
        sys.path.append(beside)
    spec.loader.exec_module(module)
    return module
