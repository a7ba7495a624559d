"""The words of a command line are checked on both sides of Hydra, which forgives too much.

Hydra ends in tracebacks on groups without a name and on deep nests, and takes -1 for true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import BooleanNode, DictConfig
from omegaconf.errors import ValidationError

from rlkit.checks.bounds import DEPTH
from rlkit.config import ConfigError, require

_LONGEST_NAME = 200
_NO_BOOLEAN = re.compile(r"(?<!\S)\S+ must be true or false, got .*")
"""It begins at a word: from each letter of a word of a million, it would read to the word's end."""
_FILE = re.compile(r"In '([^']+)': ")
"""Hydra names the file of a value that does not fit."""


def composed_from(
    words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]
) -> DictConfig:
    """Return what Hydra composes from `words`.

    To be used while Hydra is initialised.

    Raises:
        ConfigError: A value has no name of an option, is nested too deep, or is no boolean.
        HydraException, OmegaConfBaseException: Hydra refuses a word.
    """
    parsed = _parse(words)
    for override in parsed:
        _check_before(override)
    with _strict_booleans():
        return compose(words)


def _parse(words: Sequence[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for word in words:
        try:
            parsed += parser.parse_overrides([word])
        except RecursionError:
            raise ConfigError(_too_deep(word.partition("=")[0])) from None
    return parsed


def _check_before(override: Override) -> None:
    key, value = _key(override), override.value()
    if _depth(value) > DEPTH:
        raise ConfigError(_too_deep(key))
    repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    if override.is_delete() or not repository.group_exists(key) or value in ({}, []):
        return
    is_name = isinstance(value, str | QuotedString | dict)
    require(is_name, key, "the name of an option", value)
    short = not isinstance(value, str) or len(value) <= _LONGEST_NAME
    require(short, key, f"a name of at most {_LONGEST_NAME} characters", value)


@contextmanager
def _strict_booleans() -> Iterator[None]:
    """Refuse what OmegaConf takes for a boolean: numbers, `yes`, `on`, quoted words.

    It converts a value of a file when it merges it; nothing tells afterwards what the file said.
    """
    lenient = BooleanNode.validate_and_convert

    def strict(node: BooleanNode, value: object) -> object:
        if isinstance(value, int | str) and not isinstance(value, bool):
            raise ValidationError("$FULL_KEY must be true or false, got $VALUE")
        return lenient(node, value)

    BooleanNode.validate_and_convert = strict  # type: ignore[method-assign, assignment]
    try:
        yield
    except Exception as error:
        said = f"{error}\n{error.__cause__}"  # of a word, Hydra keeps the reason for itself
        if found := _NO_BOOLEAN.search(said):
            file = _FILE.match(said)
            raise ConfigError(found[0] + (f" in {file[1]}" if file else "")) from error
        raise
    finally:
        BooleanNode.validate_and_convert = lenient  # type: ignore[method-assign]


def _key(override: Override) -> str:
    return override.key_or_group.split("@")[0].replace("/", ".")


def _depth(value: object) -> int:
    """Return how deep lists and mappings are nested; the walk is no recursion."""
    depth, level = 0, [value]
    while level := [
        inner
        for item in level
        if isinstance(item, list | dict)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth


def _too_deep(key: str) -> str:
    return f"{key} must be nested at most {DEPTH} deep, got more"
