"""Look whether an export fits on the disk before it is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rlkit.exports.formats import Format, Kind
from rlkit.exports.trained import TrainedPolicy
from rlkit.models.quantize import quantisable

_BESIDE = 64_000_000
"""Bytes for the tokenizer and the other small files of one export."""


def bytes_of(format: Format, trained: TrainedPolicy) -> int:
    """Return about how many bytes an export takes while it is made and proven."""
    total = sum(p.numel() for p in trained.skeleton.parameters())
    in_layers = sum(m.weight.numel() for m in quantisable(trained.skeleton).values())
    adapter = 0
    if trained.adapter is not None:
        adapter = sum(4 * (a.numel() + b.numel()) for a, b in trained.adapter.factors.values())
    if format.kind is Kind.adapter:
        return adapter + _BESIDE
    if format.kind is Kind.gguf_lora:
        return adapter + 2 * total + _BESIDE  # the base as a GGUF file, for the proof alone
    # The embedding and the head have at most 16 bits, in GGUF files about 8.
    other = 1.0 if format.kind is Kind.gguf and format.bits < 16 else 2.0
    return int(in_layers * format.bits / 8 + (total - in_layers) * other) + _BESIDE


def check_disk(out: Path, formats: Sequence[Format], trained: TrainedPolicy) -> None:
    """Raise ValueError when the disk of `out` has less room than the exports take."""
    wanted = sum(bytes_of(format, trained) for format in formats)
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        names = ", ".join(format.name for format in formats)
        raise ValueError(
            f"--out must lie on a disk with {wanted / 1e9:.2f} GB free for {names}, got "
            f"{free / 1e9:.2f} GB at {place}"
        )
