"""This module starts the processes of a run on several devices, and lets them meet.

torchrun's agent starts, watches and ends them: when one dies the others hear SIGTERM, and what does
not end by itself is killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlkit.config import Config, ConfigError, DeviceChoice, require
from rlkit.launch.birth import INTERRUPTED, boot
from rlkit.launch.devices import find_gpus
from rlkit.launch.outcome import last_line, read_status, settle, sign_for
from rlkit.launch.packed import pack
from rlkit.launch.rank_place import END, RankPlace, place_from, use_card
from rlkit.ranks import ALONE, Ranks
from rlkit.ranks.group import Group
from rlkit.tracking import Status
from rlkit.training.stopping import Interrupted

_CONNECT_S = 120.0
_GRACE_S = 25
"""Seconds that a rank has to save and end when another one died or the user stopped the run."""
_GRACE_OF_TEAM_S = 12
"""The same where ranks compute each layer together: one that waits there hears no signal."""


def must_be_started(config: Config) -> bool:
    """Return whether the ranks of a run do not exist yet: torchrun did not start this process."""
    return config.gpus > 1 and "RANK" not in os.environ


def start_ranks(config: Config) -> int:
    """Run `config.gpus` processes on this machine and return the exit code of rank 0.

    Raises:
        ConfigError: This machine has fewer cards.
    """
    check_cards(config, here=config.gpus)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="rlkit-ranks-") as scratch:
        file, run_dir = Path(scratch, "job.json"), Path(config.run_dir)
        file.write_text(json.dumps({"config": pack(config), "argv": sys.argv}))
        command = boot("rlkit.launch.rank_process", str(file), str(os.getpid()))
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.gpus,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            # What the others print would be the same lines; their logs are in the run's folder.
            logs_specs=DefaultLogsSpecs(
                log_dir=scratch, redirects=dict.fromkeys(range(1, config.gpus), Std.ALL)
            ),
        )
        # torch before 2.12 has no such field; its agent waits 30 s.
        if hasattr(launch, "shutdown_timeout"):
            together = config.ranks_together > 1
            launch.shutdown_timeout = _GRACE_OF_TEAM_S if together else _GRACE_S
        try:
            elastic_launch(launch, command[0])(*command[1:])
        except SignalException:
            code = _end(Path(scratch), run_dir)
            return INTERRUPTED if code is None else code
        except ChildFailedError as error:
            code = _end(Path(scratch), run_dir)
            if code is not None:
                return code
            rank, failure = error.get_first_failure()
            reason = _cause_of_death(Path(scratch), rank, failure.exitcode)
            print(f"rlkit: {reason}", file=sys.stderr)
            _settle(run_dir, reason)
            return 1
        code = _end(Path(scratch), run_dir)
        return 1 if code is None else code


def _end(scratch: Path, run_dir: Path) -> int | None:
    """Return the exit code of the first rank, whose record becomes this process's; None = none."""
    file = scratch / END
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    # A sweep started this process, and believes the record of no other.
    sign_for(run_dir, pid=found["pid"])
    return int(found["code"])


def _cause_of_death(scratch: Path, rank: int, code: int) -> str:
    """Return one line on a rank that ended before the first one could say why."""
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    files = sorted(scratch.glob(f"*/attempt_*/{rank}/stderr.log"))
    said = last_line(files[0]) if files else ""
    return f"rank {rank} ended with exit code {code}" + (f": {said}" if said else "")


def _settle(run_dir: Path, reason: str) -> None:
    """Record the end of a run whose first rank could not, if it had begun."""
    recorded = read_status(run_dir)
    if recorded.status is Status.running:
        settle(run_dir, pid=recorded.pid, otherwise=Status.failed, message=reason)


def check_cards(config: Config, *, here: int) -> None:
    """Raise ConfigError unless this machine has a card for each of the `here` ranks on it."""
    if config.device is DeviceChoice.cpu:
        return
    found = len(find_gpus(os.environ))
    rule = f"<= {found}, the CUDA devices of this machine, unless device=cpu"
    require(here <= found, "gpus", rule, config.gpus)


def meet(config: Config) -> Ranks:
    """Return the ranks of this run, once all of them are there.

    Raises:
        ConfigError: torchrun started another number of processes.
        RankError: The other ranks did not come.
    """
    place = place_from(os.environ) if config.gpus > 1 else None
    if config.gpus == 1:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        require(started == 1, "gpus", f"{started}, the processes that torchrun started", 1)
        return ALONE
    if place is None:
        raise ConfigError("gpus must be 1 where no launcher starts the ranks: use the command line")
    require(
        place.size == config.gpus,
        "gpus",
        f"{place.size}, the processes that torchrun started",
        config.gpus,
    )
    check_cards(config, here=place.local + 1)
    use_card(os.environ, place.local)
    on_cards = config.device is not DeviceChoice.cpu and torch.cuda.is_available()
    return Group(
        _Connect(place),
        rank=place.rank,
        size=place.size,
        device=torch.device("cuda" if on_cards else "cpu"),
        relayed=(Interrupted, ConfigError, torch.OutOfMemoryError),
        in_step=config.memory.is_sharded,
    )


def agree(ranks: Ranks, facts: Mapping[str, object]) -> None:
    """Raise ConfigError when a fact differs on two ranks, such as the version of a library."""
    found = [json.loads(part) for part in ranks.share(lambda: json.dumps(facts).encode())]
    for rank, other in enumerate(found):
        for key in dict.fromkeys([*found[0], *other]):
            first, here = found[0].get(key), other.get(key)
            rule = f"the same on all ranks, {first} as on rank 0"
            require(first == here, key, rule, f"{here} on rank {rank}")


class _Connect:
    """This object makes connections to the store of all ranks, which lives as long as it does."""

    def __init__(self, place: RankPlace) -> None:
        self._place = place
        self._own = self._open(hosts=True) if place.hosts_store else None

    def __call__(self) -> Store:
        """Return a new connection."""
        return self._open(hosts=False)

    def _open(self, *, hosts: bool) -> Store:
        return TCPStore(
            self._place.host,
            self._place.port,
            is_master=hosts,
            wait_for_workers=False,
            timeout=timedelta(seconds=_CONNECT_S),
        )
