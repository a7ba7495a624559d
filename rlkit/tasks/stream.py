"""Large files are read line by line when a step asks for them; memory holds 8 bytes a row.

Each epoch has an order of its own: place i of n has row (a i + b) mod n. The seed of the epoch
draws a and b, and a has no common divisor with n. So each row comes once an epoch, and no
permutation is held. Row i is a function of i alone, as a resumed run needs it.
"""

from __future__ import annotations

import json
import math
import mmap
import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlkit.tasks.base import Example
from rlkit.tasks.config import BadRows


class Lines:
    """The rows of .jsonl files by number; files are mapped and stay on the disk."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Find where each row begins.

        Raises ValueError when a file cannot be read or none holds a row.
        """
        self._files: list[Path] = []
        self._maps: list[mmap.mmap] = []
        self._starts: list[array[int]] = []
        self._firsts: list[int] = []
        count = 0
        for file in files:
            starts = array("q")
            try:
                with file.open("rb") as stream:
                    place = 0
                    for line in stream:
                        if line.strip():
                            starts.append(place)
                        place += len(line)
                    if starts:
                        self._maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            except OSError as error:
                raise ValueError(f"task.path must be readable, got {file}: {error}") from error
            if starts:
                self._files.append(file)
                self._firsts.append(count)
                self._starts.append(starts)
                count += len(starts)
        self._count = count
        if not count:
            raise ValueError(f"task.path must hold rows, got none from {files[0]}")

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> tuple[dict[str, Any], str]:
        """Return row `index` and what messages call it.

        Raises ValueError, naming the row, when it is no JSON object.
        """
        which = bisect_right(self._firsts, index) - 1
        number = index - self._firsts[which]
        where = f"row {number} of {self._files[which]}"
        data = self._maps[which]
        start = self._starts[which][number]
        end = data.find(b"\n", start)
        try:
            text = data[start : end if end >= 0 else len(data)].decode("utf-8-sig")
            value = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where} must be JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {type(value).__name__}")
        return value, where


def streamed(
    lines: Lines,
    to_example: Callable[[dict[str, Any], str], Example],
    *,
    seed: int,
    held: Collection[str],
    bad_rows: BadRows,
) -> Callable[[int], Example]:
    """Return the endless reader of the rows, each once an epoch.

    A row that is held out, or that cannot be used and may be dropped, is replaced by the next one.

    Args:
        lines: The rows.
        to_example: Makes an example of a row; raises ValueError naming it.
        seed: The seed of the order, >= 0.
        held: The keys of the held-out examples.
        bad_rows: What becomes of a row that cannot be used.

    Returns:
        Example i, for every i >= 0. It raises ValueError where a row cannot be used and may not be
        dropped, or no row can.
    """

    def get(index: int) -> Example:
        epoch, place = divmod(index, len(lines))
        problem = "all rows are held out"
        for step in range(len(lines)):
            chosen = _shuffled((place + step) % len(lines), len(lines), f"{seed}:{epoch}")
            try:
                row, where = lines.row(chosen)
                example = replace(to_example(row, where), where=where)
            except ValueError as error:
                if bad_rows is BadRows.error:
                    raise
                problem = str(error)
                continue
            if example.key not in held:
                return example
        raise ValueError(f"task.path must hold rows to train on, got none: {problem}")

    return get


def _shuffled(place: int, size: int, seed: str) -> int:
    rng = random.Random(f"{seed}:stream")
    while True:
        factor = rng.randrange(size) if size > 1 else 1
        if math.gcd(factor, size) == 1:
            break
    return (factor * place + rng.randrange(size)) % size
