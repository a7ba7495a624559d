"""This module keeps secrets out of all that a run writes, by the name of their key and by value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
_SECRET_WORDS = frozenset({"token", "key", "secret", "password", "passwd", "credential"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&\s#]+)")
_MIN_LENGTH = 6


def is_secret_key(name: str) -> bool:
    """Return whether the last word of `name` says that its value is a secret.

    It is True for `hf_token`, `WANDB_API_KEY`, `hub.apiKey`; False for `num_tokens`, `keys`,
    `key_dim`.
    """
    words = _WORD.findall(name.rsplit(".", 1)[-1])
    return bool(words) and words[-1].lower() in _SECRET_WORDS


class Redactor:
    """This object replaces secrets by `***`: under a secret key, known values, URL credentials.

    Known values shorter than 6 characters are not searched for in text: they would hit words.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = sorted({v for v in values if len(v) >= _MIN_LENGTH}, key=len, reverse=True)
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
        pairs: list[tuple[str, object]] = [*environ.items(), *(config or {}).items()]
        for argument in argv:
            name, separator, value = argument.lstrip("+~-").partition("=")
            if separator:
                pairs.append((name, value.strip("'\"")))
        return cls(v for k, v in pairs if isinstance(v, str) and is_secret_key(k))

    def text(self, text: str) -> str:
        """Return `text` without known secrets and without credentials in URLs."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if "://" in text:
            text = _USERINFO.sub(f"{HIDDEN}@", text)
            text = _QUERY.sub(_hide_query, text)
        return text

    def config(self, config: Mapping[str, object]) -> dict[str, object]:
        """Return a flat config with secret leaves hidden.

        Numbers, booleans and None are never secrets.
        """
        return {key: self._leaf(key, value) for key, value in config.items()}

    def _leaf(self, key: str, value: object) -> object:
        if isinstance(value, str):
            return HIDDEN if value and is_secret_key(key) else self.text(value)
        if isinstance(value, Mapping):
            return self.config(value)
        if isinstance(value, (list, tuple)):
            return [self._leaf(key, item) for item in value]
        return value


def _hide_query(match: re.Match[str]) -> str:
    name, value = match.groups()
    return f"{name}={HIDDEN if is_secret_key(name) else value}"
