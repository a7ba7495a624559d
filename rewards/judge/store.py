"""This module keeps every reply of a judge in one SQLite file, by the content of its request.

A resumed run asks the same questions again and gets the same replies, bit for bit and for nothing.
What was spent is counted in the same transaction, so that a budget holds for the whole run.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, reply TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    one INTEGER PRIMARY KEY CHECK (one = 1), calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
INSERT OR IGNORE INTO spent VALUES (1, 0, 0, 0);
"""


class Spent(NamedTuple):
    """This is what the requests so far took."""

    calls: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def request_key(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a request's content: its model, messages and sampling.

    The address is no part of it: the same judge may come back at another port.
    """
    canonical = json.dumps([_VERSION, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class ReplyStore:
    """A store holds replies in memory until it is given a file; one thread at a time uses it."""

    def __init__(self, file: Path | None = None) -> None:
        self._db = _open(":memory:" if file is None else str(file))

    def move_to(self, file: Path) -> None:
        """Go on in `file`, with what is in memory added to what is there."""
        replies = self._db.execute("SELECT key, reply, at FROM replies").fetchall()
        spent = self.spent()
        self._db.close()
        self._db = _open(str(file))
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", replies)
            self._count(spent)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return the stored reply; None when there is none."""
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, choice: Mapping[str, Any], usage: Spent) -> None:
        """Keep a reply and count what it took; it is on disk when this returns."""
        text = json.dumps(choice, separators=(",", ":"))
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, time.time())
            )
            self._count(usage)

    def count(self, usage: Spent) -> None:
        """Count what a request took whose reply is not kept."""
        with self._db:
            self._count(usage)

    def spent(self) -> Spent:
        """Return what all requests took whose replies came."""
        row = self._db.execute("SELECT calls, prompt_tokens, completion_tokens FROM spent")
        return Spent(*row.fetchone())

    def close(self) -> None:
        """Close the file; idempotent."""
        self._db.close()

    def _count(self, usage: Spent) -> None:
        self._db.execute(
            "UPDATE spent SET calls = calls + ?, prompt_tokens = prompt_tokens + ?, "
            "completion_tokens = completion_tokens + ?",
            usage,
        )


def _open(place: str) -> sqlite3.Connection:
    # The scorer's thread changes from step to step; two never use it at once.
    try:
        db = sqlite3.connect(place, check_same_thread=False, timeout=30.0)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except sqlite3.Error as error:
        raise ValueError(
            f"the judge's cache must be an SQLite file, got {place}: {error}"
        ) from error
    return db
