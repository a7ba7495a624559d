"""A model's weights are known again by samples of each tensor: reading all bytes takes too long."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_WEIGHTS = (".safetensors", ".gguf", ".bin")
_BLOCK = 4096
_BLOCKS = 1024
"""Blocks that are read of a file whose tensors are not known."""
_MOST_HEADER = 100_000_000


def weights_digest(folder: Path) -> str | None:
    """Return a hash over samples of the weights in a folder or file; None where there are none.

    Of every tensor the first, the middle and the last 4 KiB count, so training any part of a model
    changes it. A change of some bytes in the middle of a large tensor alone is not seen.

    Raises OSError when a file cannot be read.
    """
    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    files = [file for file in files if file.suffix in _WEIGHTS and file.is_file()]
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for start in sorted(_places(file, size)):
                stream.seek(start)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def _places(file: Path, size: int) -> set[int]:
    """Return where the blocks begin."""
    spans = _tensors(file, size) if file.suffix == ".safetensors" else []
    if not spans:
        return set(range(0, size, max(_BLOCK, size // _BLOCKS)))
    places = {0}
    for start, end in spans:
        last = max(start, end - _BLOCK)
        places |= {start, (start + last) // 2, last}
    return places


def _tensors(file: Path, size: int) -> list[tuple[int, int]]:
    """Return first and last byte of every tensor of a safetensors file; none where it is odd."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size, _MOST_HEADER):
            return []
        header = stream.read(length)
    try:
        entries = json.loads(header)
        offsets = [e["data_offsets"] for name, e in entries.items() if name != "__metadata__"]
        return [(8 + length + int(a), 8 + length + int(b)) for a, b in offsets]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
