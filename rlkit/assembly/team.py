"""The ranks of a run that are one engine find each other before it starts."""

from __future__ import annotations

import json
import platform

from rlkit.config import Config, ConfigError
from rlkit.generation.vllm.team import Team, free_port
from rlkit.ranks import Ranks


def team_of(config: Config, ranks: Ranks) -> Team | None:
    """Return the ranks that sample with this one as one engine; None where each has its own.

    Neighbours are a team: ranks 0 and 1, 2 and 3 and so on. All ranks call this together.

    Raises:
        ConfigError: The ranks of a team are on different machines.
    """
    size = config.generator.ranks_together
    if size == 1:
        return None

    def place() -> bytes:
        # The first of a team listens; that the others make up a port as well harms nobody.
        return json.dumps([platform.node(), free_port()]).encode()

    places = [json.loads(part) for part in ranks.share(place)]
    first = ranks.rank // size * size
    machines = {machine for machine, _ in places[first : first + size]}
    if len(machines) > 1:
        raise ConfigError(
            "generator.tensor_parallel must be at most the ranks of one machine, got "
            f"{size} for ranks {first} to {first + size - 1} on {', '.join(sorted(machines))}"
        )
    return Team(rank=ranks.rank - first, size=size, port=places[first][1])


def check_team(config: Config, ranks: Ranks, *, has_environment: bool) -> None:
    """Raise ConfigError when ranks that sample together are not there, or could part."""
    size, sharded = config.ranks_together, config.memory.is_sharded
    if config.generator.ranks_together > ranks.size:
        # Commands that look at a run in one process would wait for the others for ever.
        raise ConfigError(f"generator.tensor_parallel must be 1 in one process, got {size}")
    if size > 1 and has_environment:
        # An environment may answer two ranks otherwise, or at another time.
        got = "memory.weights must be whole" if sharded else "generator.tensor_parallel must be 1"
        raise ConfigError(f"{got} with an environment, got {'sharded' if sharded else size}")
