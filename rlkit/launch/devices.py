"""This module finds the cores and cards of this machine without initialising CUDA."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pynvml


class GPU(NamedTuple):
    """This record is one card as jobs are told about it."""

    name: str
    """The UUID, for CUDA_VISIBLE_DEVICES: the same for every sweep of the machine."""
    label: str
    """The index, for people."""
    bytes: int
    """Memory in all; 0 = unknown."""


def num_cores() -> int:
    """Return CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def find_gpus(environ: Mapping[str, str]) -> list[GPU]:
    """Return the cards that NVML knows and that CUDA_VISIBLE_DEVICES, if set, allows.

    There are none without a driver.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = list(_cards())
    finally:
        pynvml.nvmlShutdown()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return cards if visible is None else visible_among(cards, visible)


def visible_among(cards: Sequence[GPU], visible: str) -> list[GPU]:
    """Return the cards that CUDA would see.

    `visible` holds indices or UUIDs, of which a beginning is enough.

    As in CUDA, the first entry that names no card ends the list. A MIG instance is a card that
    NVML does not list here: it is taken as it is.
    """
    found: list[GPU] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            found.append(GPU(name=entry, label=entry[:8], bytes=0))
            continue
        match = [c for c in cards if c.label == entry or (entry and c.name.startswith(entry))]
        if not match:
            break
        found.append(match[0])
    return found


def _cards() -> Iterator[GPU]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        # A card that fell off the bus has no handle; the others are still good.
        with contextlib.suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            yield GPU(name=uuid, label=str(index), bytes=_memory(handle))


def _memory(handle: Any) -> int:
    """Return bytes of a card; 0 where it shares the memory of its host and does not say."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return 0
