"""The identity of a run is the options that can change a number, across versions of rlkit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any

from rlkit.config import Config, flatten
from rlkit.schema import FORMER_DEFAULTS, NAMES, NEWER_OPTIONS

# These options cannot change a number beyond its last bit. They say where a run lives, how it is
# watched, how it is split to fit, and when it gives up. Everything else is its identity; of
# `memory`, quantisation is.
_NOT_IDENTITY = (
    *("run_dir", "resume", "accept_changed_files", "gpus"),
    *("tracker", "checkpoint", "steps", "stop", "memory"),
)
_IDENTITY_AFTER_ALL = "memory.quant."
_HOW_SPLIT = ("generator.tensor_parallel",)
"""Options inside an identity that say, as `gpus` does, how work is split."""
_WHERE_SCORERS_RUN = re.compile(
    r"reward\.functions\.[^.]+\.options\.(url|api_key|max_in_flight|timeout_s|step_timeout_s|retries"
    r"|max_calls|max_total_tokens|cache|cache_only|device|max_tokens_per_batch)"
)
"""Options of judges and reward models that say where and how fast, not what, they judge."""
CURES: Mapping[str, tuple[object, ...]] = {
    "task.overlong_prompts": ("drop",),
    "task.bad_rows": ("drop",),
}
"""Options that may change on resume, and to which values: they only leave rows out."""


def identity(config: Config) -> dict[str, Any]:
    """Return the leaves that can change a number; a resumed run must share them."""
    return {key: value for key, value in known_leaves(config).items() if is_identity(key)}


def is_identity(key: str) -> bool:
    """Return whether the option `key` can change a number."""
    is_part = key.split(".")[0] not in _NOT_IDENTITY or key.startswith(_IDENTITY_AFTER_ALL)
    return (
        is_part and key not in (*NAMES, *_HOW_SPLIT) and _WHERE_SCORERS_RUN.fullmatch(key) is None
    )


def known_leaves(config: Config) -> dict[str, Any]:
    """Return `flatten` as older runs would have it, where an option is left at what they did."""
    return {
        key: _as_before(key, value)
        for key, value in flatten(config).items()
        if (key not in NEWER_OPTIONS or value != NEWER_OPTIONS[key]) and key not in NAMES
    }


def _as_before(key: str, value: object) -> object:
    now, before = FORMER_DEFAULTS.get(key, (value, value))
    return before if value == now else value


def before_it_was(config: Config, key: str) -> object:
    """Return the value that an option has for runs whose version did not know it, as YAML has it.

    It is the option's default, unless `NEWER_OPTIONS` says what those runs did; else None.
    """
    if key in NEWER_OPTIONS:
        return NEWER_OPTIONS[key]
    *groups, name = key.split(".")
    node: object = config
    for group in groups:
        node = getattr(node, group, None)
    for field in fields(node) if is_dataclass(node) else ():
        if field.name == name:
            made = field.default_factory() if field.default_factory is not MISSING else None
            value = field.default if field.default is not MISSING else made
            return value.name if isinstance(value, Enum) else value
    return None


def identity_hash(config: Config) -> str:
    """Return twelve hex digits that differ when anything that can change a number differs."""
    canonical = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
