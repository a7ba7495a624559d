"""The place of this process among the ranks of its run, and its end.

torchrun's variables say which rank it is. They are read once and taken away, so that no library of
this process takes the run's ranks for its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import NoReturn

from rlkit.launch.devices import find_gpus

END = "end.json"
"""The file in which the first rank tells its launcher its exit code and its process id."""
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_", "LOCAL_WORLD_")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """The place of this process among the ranks of its run, as torchrun gave it."""

    rank: int
    size: int
    local: int
    """The number of this process on its machine."""
    host: str
    port: int
    hosts_store: bool
    """Whether the store that all ranks meet at is this process's to start."""


def place_from(environ: MutableMapping[str, str]) -> RankPlace | None:
    """Take torchrun's variables out of `environ`; None when they are not there."""
    if not all(name in environ for name in _VARIABLES):
        return None
    rank, local, size, host, port = (environ.pop(name) for name in _VARIABLES)
    by_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    for name in [name for name in environ if name.startswith(_PREFIXES)]:
        del environ[name]
    return RankPlace(
        rank=int(rank),
        size=int(size),
        local=int(local),
        host=host,
        port=int(port),
        hosts_store=int(rank) == 0 and not by_agent,
    )


def use_card(environ: MutableMapping[str, str], local: int) -> None:
    """Let this process see one card alone, before anything asks CUDA; without cards do nothing."""
    cards = find_gpus(environ)
    if cards:
        environ["CUDA_VISIBLE_DEVICES"] = cards[local % len(cards)].name


def leave(code: int) -> NoReturn:
    """End this process at once: gloo would wait at its end for a rank that is frozen."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.shutdown()
    os._exit(code)
