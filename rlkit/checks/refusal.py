"""Bad input is refused here in one line, `key must be RULE, got VALUE`, before a run starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.checks.bounds import check_ranges, check_shape
from rlkit.generation.vllm.sampling_options import further_options
from rlkit.runtime.redact import Redactor
from rlkit.schema import one_line
from rlkit.schema import require as value_require


class ConfigError(ValueError):
    """The configuration breaks a rule; the message is one line that names key, rule and value.

    It holds no secret of the environment or of the command line, and no control characters.
    """

    def __init__(self, message: str) -> None:
        hidden = Redactor.of_process().text(str(message))
        super().__init__(one_line(hidden))


require = partial(value_require, error=ConfigError)
"""`rlkit.schema.require` for the rules that span several groups."""


def checked(node: DictConfig, *, prefix: str = "") -> object:
    """Return the object of a structured node, each leaf in its range.

    Args:
        node: A composed configuration, or a part of it.
        prefix: The full key of the part, with a dot at its end.

    Raises:
        ConfigError: A rule is broken; the message names key, rule and value.
    """
    try:
        check_shape(node, prefix=prefix)
        options = OmegaConf.to_object(node)
        check_ranges(options, prefix=prefix)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return options


def refuse_unknown_keys(composed: DictConfig) -> None:
    """Raise ConfigError on a key that its dataclass lacks, with the option that was meant."""
    for key, known in _unknown_keys(composed, prefix=""):
        raise ConfigError(f"{key} is not an option{did_you_mean(key, known)}")


def did_you_mean(key: str, known: list[str]) -> str:
    """Return ` (did you mean X?)` for the nearest of `known`, else the options beside `key`."""
    parent, dot, leaf = key.rpartition(".")
    for near in difflib.get_close_matches(key, known, n=5, cutoff=0.75):
        its_parent, _, its_leaf = near.rpartition(".")
        # A long common path makes all that is under it look alike.
        if its_parent != parent or difflib.get_close_matches(leaf, [its_leaf]):
            return f" (did you mean {near}?)"
    beside = [k.removeprefix(parent + dot) for k in known if k.startswith(parent + dot)]
    names = sorted({name.split(".")[0] for name in beside})
    return f" ({parent} has {', '.join(names)})" if dot and names else ""


def _unknown_keys(node: DictConfig, *, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Yield keys of structured nodes that their dataclass lacks.

    Hydra lets `+key=value` through.
    """
    schema = OmegaConf.get_type(node)
    known = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in map(str, node):
        full_key = f"{prefix}{key}"
        if known is not None and key not in known:
            yield full_key, [f"{prefix}{name}" for name in (*known, *further_options(schema))]
            continue
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        child = node[key]
        if isinstance(child, DictConfig):
            yield from _unknown_keys(child, prefix=f"{full_key}.")
