"""These files are never half-written: whole files by rename, JSON lines by append and roll-back."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlkit.runtime.files import published
from rlkit.tracking.base import VOLATILE, TrackingError


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError into a one-line `TrackingError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrackingError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file durably, or leave it alone.

    Raises:
        TrackingError: The disk is full, permission is missing and the like.
    """
    with naming(path), published(path) as scratch:
        scratch.write_bytes(data)


def encode(record: Mapping[str, object]) -> str:
    """Return one line of strict JSON with sorted keys.

    NaN becomes null; infinities become "Infinity" and "-Infinity".
    """
    return json.dumps(_finite(record), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def number(value: object) -> float:
    """Undo `encode` on one number.

    Raises:
        TypeError, ValueError: `value` is none that `encode` makes of a number.
    """
    if value is None:
        return math.nan
    if isinstance(value, (int, float, str)):
        return float(value)
    raise TypeError(f"not a number: {value!r}")


def comparable(line: Mapping[str, object]) -> dict[str, object]:
    """Return what runs of one seed share bitwise: all but times, memory and speed."""
    return {key: value for key, value in line.items() if not key.startswith(VOLATILE)}


def read_lines(path: Path) -> list[dict[str, object]]:
    """Return the records of a JSON-lines file; a last line cut off by a crash is left out.

    Raises:
        TrackingError: a line that is not the last is no JSON object.
    """
    if not path.exists():
        return []
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for index, line in enumerate(complete.split(b"\n") if complete else []):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TrackingError(f"{path} line {index + 1} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise TrackingError(f"{path} line {index + 1} is no JSON object")
        records.append(record)
    return records


class JsonLines:
    """This is an append-only file of one JSON object a line, durable after every `append`."""

    def __init__(self, path: Path, *, kept: Sequence[Mapping[str, object]]) -> None:
        """Open `path`, which holds the records `kept` from now on; other lines are dropped."""
        self._path = path
        text = "".join(encode(record) + "\n" for record in kept).encode()
        if path.exists() and path.read_bytes() != text:
            write_atomic(path, text)
        with naming(path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            self._file = open(os.open(path, flags, 0o666), "ab", buffering=0)  # noqa: SIM115

    def append(self, record: Mapping[str, object]) -> None:
        """Write one line, or nothing.

        Raises:
            TrackingError: the line could not be written; what came before it is intact.
        """
        data = (encode(record) + "\n").encode()
        with naming(self._path):
            end = os.fstat(self._file.fileno()).st_size
            try:
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), end)
                raise

    def close(self) -> None:
        self._file.close()
