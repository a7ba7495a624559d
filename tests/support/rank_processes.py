"""Run a function in several processes that are the ranks of one run, and return their results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from rlkit.ranks.group import Group
from rlkit.training.stopping import Interrupted

SUPPORT = Path(__file__).parent
_RUN = (
    "import sys; sys.path[:0] = [{support!r}]; import importlib, rank_processes; "
    "rank_processes.main(importlib.import_module({module!r}).{function})"
)


def run_ranks(function: str, size: int, *arguments: str, timeout: float = 120) -> list[Any]:
    """Call `module:function(ranks, *arguments)` as each of `size` ranks; JSON of what they return.

    The module is one of this folder. A rank that dies gives its exit code in place of a result.
    """
    module, _, name = function.partition(":")
    code = _RUN.format(support=str(SUPPORT), module=module, function=name)
    start = [sys.executable, "-c", code]
    place = [str(size), str(_free_port())]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{rank}.json") for rank in range(size)]
        processes = [
            subprocess.Popen([*start, str(file), str(rank), *place, *arguments])
            for rank, file in enumerate(files)
        ]
        codes = [process.wait(timeout=timeout) for process in processes]
        return [
            json.loads(file.read_text()) if file.exists() else code
            for file, code in zip(files, codes, strict=True)
        ]


def main(function: Any) -> None:
    """Be one rank: the file of its result, its number, their number, the port, and arguments."""
    rank, size, port = map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    hosted = _connect(port, hosts=True) if rank == 0 else None
    ranks = Group(
        partial(_connect, port, hosts=False),
        rank=rank,
        size=size,
        device=torch.device("cpu"),
        relayed=(Interrupted, torch.OutOfMemoryError),
    )
    Path(sys.argv[1]).write_text(json.dumps(function(ranks, *sys.argv[5:])))
    ranks.together(lambda: None)  # rank 0 hosts the store: it must not leave before the others
    ranks.close()
    del hosted
    os._exit(0)


def _connect(port: int, *, hosts: bool) -> Store:
    limit = timedelta(seconds=60)
    return TCPStore("127.0.0.1", port, is_master=hosts, wait_for_workers=False, timeout=limit)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def same_on_all(results: Sequence[Any]) -> Any:
    """Return the one result that all ranks gave."""
    assert all(result == results[0] for result in results), results
    return results[0]
