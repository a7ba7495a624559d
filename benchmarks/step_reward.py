"""The reward of `benchmarks.step`: noise, the same for both sides, and light to import."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from rlkit.types import Completion


def score(group: Sequence[Completion]) -> list[float]:
    """Noise in [0, 1) for each completion."""
    return [noise(completion.text) for completion in group]


def noise(text: str) -> float:
    """A number in [0, 1) that depends on `text` in no useful way."""
    return zlib.crc32(text.encode()) / 2**32
