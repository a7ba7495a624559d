"""This module tells Hydra of options of the group `algorithm` that name code from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import HydraException

from rlkit.algorithms.outside import installed, load
from rlkit.config import ConfigError

_GROUP = "algorithm"
_FN = "algorithm.fn"


def offer_algorithms(arguments: Sequence[str]) -> list[str]:
    """Make every algorithm from outside that `arguments` name an option of the group `algorithm`.

    Returns the arguments with `algorithm.fn=X` written as `algorithm=X`, which Hydra composes.
    Raises ConfigError with one line when one cannot be loaded.
    """
    named = dict(installed())
    result = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in (_GROUP, _FN):
            result.append(argument)
            continue
        for option in _values(f"{_GROUP}={value}"):
            if key == _FN and ":" not in option:
                rule = f"{_FN} must be package.module:factory or file.py:factory"
                raise ConfigError(f"{rule}, got {option}")
            if ":" in option or option in named:
                _offer(option, target=named.get(option, option))
        result.append(f"{_GROUP}={value}")
    return result


def as_typed(override: str) -> str:
    """Return an override of a sweep's job without the backslash that Hydra puts before a colon."""
    return override.replace("\\:", ":") if override.startswith(f"{_GROUP}=") else override


def _offer(option: str, *, target: str) -> None:
    try:
        config = load(target)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # Hydra takes what stands before a slash for a group, and drops an empty one.
    folder, _, name = option.rpartition("/")
    parts = [part for part in (_GROUP, *folder.split("/")) if part]
    ConfigStore.instance().store(group="/".join(parts), name=name, node=config)


def _values(override: str) -> Iterator[str]:
    """Yield every value of an override, swept or not.

    There are none where Hydra cannot read it; Hydra will say so.
    """
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
        swept = parsed.is_sweep_override()
        values = list(parsed.sweep_iterator(Transformer.identity)) if swept else [parsed.value()]
    except HydraException:
        return
    for value in values:
        if isinstance(value, str | QuotedString):
            yield value.text if isinstance(value, QuotedString) else value
