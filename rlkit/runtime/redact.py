"""This module keeps secrets out of all that a run writes, by the name of their key and by value.

An option can name a variable of the environment instead of holding its value: `env:NAME`. The name
is what files and logs show, and `resolved` gives the value to who needs it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "***"
_SECRET_WORDS = frozenset(
    {
        *("token", "key", "secret", "password", "passwd", "credential", "credentials"),
        *("passphrase", "apikey", "bearer", "authorization"),
    }
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&\s#]+)")
_PAIR = re.compile(r"""([\w.-]+)['"]?\s*[=:]\s*['"]?([^\s'",;{}\[\]&]+)""")
_FLAG = re.compile(r"--?[\w-]+")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
)
"""Tokens that services mark as such: Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, JWT."""
_MIN_LENGTH = 6
_REFERENCE = re.compile(r"env:([A-Za-z_]\w*)")


def is_secret_key(name: str) -> bool:
    """Return whether the last word of `name` says that its value is a secret.

    It is True for `hf_token`, `WANDB_API_KEY`, `hub.apiKey`; False for `num_tokens`, `keys`,
    `key_dim`.
    """
    words = _WORD.findall(name.rsplit(".", 1)[-1])
    return bool(words) and words[-1].lower() in _SECRET_WORDS


def is_secret_variable(name: str) -> bool:
    """Return whether any word of an environment variable's name says so: `API_KEY_OF_MINE`."""
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


def is_reference(value: object) -> bool:
    """Return whether `value` names a variable of the environment: `env:NAME`."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def resolved(value: Any, *, key: str) -> Any:
    """Return `value` with what every `env:NAME` in it stands for, in lists and mappings too.

    Raises ValueError, naming `key`, when a variable is not set.
    """
    if isinstance(value, Mapping):
        return {name: resolved(item, key=f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(item, key=key) for item in value]
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in os.environ:
        raise ValueError(f"{key} must name a variable that is set, got {value}")
    return os.environ[match[1]]


class Redactor:
    """This object replaces secrets by `***`: under a secret key, known values, URL credentials.

    Known values shorter than 6 characters are not searched for in text: they would hit words.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for v in values if len(v) >= _MIN_LENGTH for form in _forms(v)}
        known = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    @classmethod
    def collect(
        cls,
        *,
        environ: Mapping[str, str],
        argv: Iterable[str] = (),
        config: Mapping[str, object] | None = None,
    ) -> Redactor:
        """Know the secrets among environment variables, `key=value` arguments and config leaves."""
        values = [value for name, value in environ.items() if is_secret_variable(name)]
        values += _of_arguments(list(argv))
        values += _of_leaves("", dict(config or {}))
        # A reference stands for the value of its variable, whatever that is called.
        named = (_REFERENCE.fullmatch(value) for value in values)
        pairs = zip(values, named, strict=True)
        return cls(v if name is None else environ.get(name[1], "") for v, name in pairs)

    @classmethod
    def of_process(cls) -> Redactor:
        """Know the secrets of this process's environment and command line."""
        return cls.collect(environ=os.environ, argv=sys.argv)

    def text(self, text: str) -> str:
        """Return `text` without known secrets and without credentials in URLs."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _SHAPES.sub(HIDDEN, text)
        if "://" in text:
            text = _USERINFO.sub(f"{HIDDEN}@", text)
            text = _QUERY.sub(_hide_query, text)
        return text

    def config(self, config: Mapping[str, object]) -> dict[str, object]:
        """Return a config, flat or nested, with secret leaves hidden.

        Numbers, booleans, None and references to the environment are never secrets.
        """
        return {key: self.leaf(key, value) for key, value in config.items()}

    def leaf(self, key: str, value: object) -> object:
        """Return the value of one option, which may be a list or a mapping, without secrets."""
        if isinstance(value, str):
            if is_reference(value):
                return value
            return HIDDEN if value and is_secret_key(key) else self.text(value)
        if isinstance(value, Mapping):
            return self.config(value)
        if isinstance(value, (list, tuple)):
            return [self.leaf(key, item) for item in value]
        return value


def _forms(value: str) -> set[str]:
    """Return the ways in which texts write a value: as it is, quoted, or in an address."""
    quoted = urllib.parse.quote(value, safe="")
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1], quoted}


def _of_arguments(arguments: list[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if _FLAG.fullmatch(argument) and is_secret_key(argument):
            yield following
        for name, value in _PAIR.findall(argument):
            if is_secret_key(name):
                yield value
        name, separator, value = argument.lstrip("+~-").partition("=")
        if separator and is_secret_key(name):
            yield value.strip("'\"")


def _of_leaves(key: str, value: object) -> Iterator[str]:
    if isinstance(value, str):
        if is_secret_key(key):
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _of_leaves(str(name), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _of_leaves(key, item)


def _hide_query(match: re.Match[str]) -> str:
    name, value = match.groups()
    return f"{name}={HIDDEN if is_secret_key(name) else value}"
