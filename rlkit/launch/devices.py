"""What this machine has to run jobs on, found without initialising CUDA in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class GPU(NamedTuple):
    """One card as jobs are told about it."""

    name: str
    """What CUDA_VISIBLE_DEVICES gets: the UUID, the same for every sweep of the machine."""
    label: str
    """What people call it: its index."""
    bytes: int
    """Memory in all; 0 = unknown."""


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def find_gpus(environ: Mapping[str, str]) -> list[GPU]:
    """The cards that nvidia-smi knows and CUDA_VISIBLE_DEVICES, if set, allows."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    cards = parse_nvidia_smi(result.stdout) if result.returncode == 0 else []
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return cards if visible is None else visible_among(cards, visible)


def parse_nvidia_smi(text: str) -> list[GPU]:
    """Lines `index, uuid, MiB`; MiB may be `[N/A]`."""
    cards = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0].isdigit():
            mib = int(fields[2]) if fields[2].isdigit() else 0
            cards.append(GPU(name=fields[1], label=fields[0], bytes=mib * 2**20))
    return cards


def visible_among(cards: Sequence[GPU], visible: str) -> list[GPU]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: indices or UUIDs (a beginning is enough).

    As in CUDA, the first entry that names no card ends the list. A MIG instance is a card that
    nvidia-smi does not list here: it is taken as it is.
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
