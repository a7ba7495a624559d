"""This module brings what reward functions print to the run's log, with the function's name.

The worker's standard output is a pipe to the trainer. Before the text of another function than the
last one, the worker writes the name between two marks. What a C library prints has no mark and
counts as the function's that printed last.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TextIO

MARK = "\x1e"
_MAX_BYTES = 16_384
_MAX_LINE = 500


class Line(NamedTuple):
    """This is one line of output."""

    function: str
    """Its name in the configuration; empty while modules are imported."""
    text: str


class MarkedStream:
    """This wraps a worker's standard output and writes the name of the function that prints."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._marked = ""
        self.function = ""
        """The function whose turn it is."""

    def write(self, text: str) -> int:
        """Write `text`, with a mark before it where the function has changed."""
        if text and self.function != self._marked:
            self._marked = self.function
            self._stream.write(f"{MARK}{self.function}{MARK}")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Collected:
    """This collects a worker's output since the last look: 16 kB, the rest is only counted."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._omitted = 0
        self._function = ""

    def add(self, data: bytes) -> None:
        """Take output as it came through the pipe."""
        room = max(0, _MAX_BYTES - len(self._data))
        self._data += data[:room]
        self._omitted += len(data) - min(room, len(data))

    def take(self) -> list[Line]:
        """Return the lines and forget them."""
        lines = []
        pieces = self._data.decode("utf-8", errors="replace").split(MARK)
        for i, piece in enumerate(pieces):
            if i % 2:
                self._function = piece[:100]
                continue
            lines += [
                Line(self._function, text[:_MAX_LINE])
                for text in piece.splitlines()
                if text.strip()
            ]
        if self._omitted:
            lines.append(Line(self._function, f"... and {self._omitted} more bytes"))
        self._data, self._omitted = bytearray(), 0
        return lines


def without_marks(text: str) -> str:
    """Return `text` without the marks and the names between them."""
    return "".join(text.split(MARK)[::2])
