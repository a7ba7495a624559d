"""A conversion gives options of rlkit, and every key that has none.

A key is never dropped: `Writer.finish` lists every key that nothing was made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One option of rlkit, and the keys that it was made of."""

    word: str
    """It is written as on the command line: `kl.beta=0.04`, `+task.columns.prompt=question`."""
    sources: tuple[str, ...]
    by_default: bool = False
    """The file does not set any of these keys; the value is the other library's default."""


class Unmatched(NamedTuple):
    """A key that has no counterpart, or a value that has none."""

    key: str
    value: object
    reason: str


@dataclass(frozen=True)
class Converted:
    """This is the result of a conversion."""

    options: list[Option] = field(default_factory=list)
    lost: list[Unmatched] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    """Keys that need no option, because rlkit does so anyway."""
    notes: list[str] = field(default_factory=list)
    """Differences that an option cannot express."""

    @property
    def words(self) -> list[str]:
        """Return the options as on the command line, choices of groups first."""
        words = [option.word for option in self.options]
        return sorted(words, key=lambda word: "." in word.partition("=")[0])


class Given:
    """It holds the keys of a file, over the defaults of its library."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self._defaults = defaults

    def __call__(self, key: str) -> Any:
        """Return the value of `key`: the file's, or the library's default."""
        return self.values.get(key, self._defaults.get(key))

    def has(self, key: str) -> bool:
        """Return whether the file sets `key`."""
        return key in self.values


class Writer:
    """It collects the options of a conversion, with the keys that they came from."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.result = Converted()

    def option(self, word: str, *sources: str) -> None:
        """Add an option that was made of these keys."""
        by_default = bool(sources) and not any(self.given.has(key) for key in sources)
        self.result.options.append(Option(word, sources, by_default))

    def set(self, key: str, value: object, *sources: str) -> None:
        """Add `key=value`, written as Hydra reads it."""
        self.option(f"{key}={written(value)}", *sources)

    def if_given(self, source: str, key: str) -> None:
        """Add `key=value` of the key `source` where the file sets it."""
        if self.given.has(source):
            self.set(key, self.given(source), source)

    def each_if_given(self, keys: Mapping[str, str]) -> None:
        """Add an option for each of `keys` that the file sets: their names here, by the file's."""
        for source, key in keys.items():
            self.if_given(source, key)

    def lose(self, key: str, reason: str) -> None:
        """Say that the value of `key` has no counterpart, where the file sets it."""
        if self.given.has(key):
            self.result.lost.append(Unmatched(key, self.given(key), reason))

    def same(self, *keys: str) -> None:
        """Say that rlkit does what these keys ask for without an option."""
        self.result.same.extend(key for key in keys if self.given.has(key))

    def note(self, text: str) -> None:
        """Add a difference that no option expresses."""
        self.result.notes.append(text)

    def finish(self, reasons: Mapping[str, str]) -> Converted:
        """List every key of the file that nothing was made of, and return the result.

        Args:
            reasons: Why a key has no counterpart, by key or by the beginning of one.
        """
        told = {key for option in self.result.options for key in option.sources}
        told |= {lost.key for lost in self.result.lost} | set(self.result.same)
        for key in self.given.values:
            if key not in told:
                # The longest beginning says most.
                known = [k for k in reasons if key == k or key.startswith(f"{k}.")]
                reason = reasons[max(known, key=len)] if known else "rlkit has no such option"
                self.lose(key, reason)
        return self.result


def written(value: object) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(written(v) for v in value)}]"
    if isinstance(value, str) and not value.replace("-", "").replace("_", "").isalnum():
        simple = all(c.isalnum() or c in "-_./:" for c in value) and value.isascii()
        return value if simple else "'" + value.replace("'", "\\'") + "'"
    return repr(value) if isinstance(value, float) else str(value)
